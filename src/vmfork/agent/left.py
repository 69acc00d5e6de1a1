"""Programs that run on though their client is gone: those of the machine that this one is a fork of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import StreamedRun, explain_plainly
from vmfork.agent.process import GuestProcess
from vmfork.agent.programs import ProgramRequests, name_of
from vmfork.wire import message
from vmfork.wire.frame import Opcode, encode_request

if TYPE_CHECKING:
    from vmfork.wire.message import LeftProgram


class LeftRequests(ProgramRequests):
    """What a greeting kept of an earlier client (`hello`): each waits until it is taken, or ends with the machine."""

    async def list_left(self, *, timeout_s: float | None = 30.0) -> tuple[LeftProgram, ...]:
        """The programs that nobody has taken, in no order. Raises `GuestError` when the agent is too old for it."""
        exchange = self._new_exchange()
        request = encode_request(exchange.stream, Opcode.LEFT)
        answer = await self._ask(exchange, request, "looking for programs that were left", timeout_s)
        with self.making_sense():
            return message.parse_left(answer)

    async def take_left(self, program: LeftProgram, *, timeout_s: float | None = 30.0) -> GuestProcess:
        """The program is ours. What it wrote since it was left comes as its output. Raises `GuestError`."""
        run = StreamedRun(self._new_stream(), send=self.send, grant=self.grant, explain=explain_plainly)
        name = name_of(program.argv)
        try:
            async with deadline(f"taking {name}", timeout_s):
                await self._begin_in_turn(run, lambda _: message.take_request(run.stream, program.number))
                pid = await run.started
        except BaseException:
            self.abandon(run)
            raise
        has = {"has_stdin": program.has_stdin, "has_terminal": program.has_terminal}
        return GuestProcess(self, run, name=name, pid=pid, **has)
