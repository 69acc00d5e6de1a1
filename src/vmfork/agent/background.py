"""Programs that a broker keeps: they run on when their client leaves."""

from __future__ import annotations

import signal as signals
from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import explain_plainly
from vmfork.agent.process import GuestProcess
from vmfork.agent.programs import explain_start
from vmfork.border import guarded
from vmfork.errors import Closed, ConfigError, ExecError, GuestError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import find_signal
from vmfork.wire.frame import BrokerOpcode, Channel, encode_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from vmfork.wire.command import Command
    from vmfork.wire.message import ExecStatus, Failure, KeptOutput, LeftProgram

# Past all that any program will ever write: what is asked from here is the end alone.
_BEYOND = 2**63 - 1
_NOT_EXECUTABLE = 126


class BackgroundRequests(Connection):
    """Programs in the background, by the numbers that their starters gave them. A broker takes these, and no agent."""

    async def start_background(self, number: int, command: Command, *, timeout_s: float | None = 30.0) -> int:
        """The program runs, and its pid. Raises `ExecError` when it cannot be started. Given up, it is killed."""
        exchange = self._new_exchange(explain_start(command))
        request = message.background_request(exchange.stream, number, command)
        if request is None:
            reason = "arguments and environment are too long for a program in the background"
            raise ExecError(command.argv[:1], _NOT_EXECUTABLE, reason, hint="write them to a file of the guest")
        try:
            answer = await self._ask(exchange, request, "starting a program in the background", timeout_s)
        except BaseException:
            if self._is_open(exchange):
                self.kill_kept_nowait(number)
            raise
        with self.making_sense():
            return message.parse_started(answer)

    async def keep_left(self, number: int, left: LeftProgram, *, timeout_s: float | None = 30.0) -> None:
        """The program that was left in the guest is kept as program `number`. Raises `GuestError`."""
        exchange = self._new_exchange()
        request = message.keep_request(exchange.stream, number, left.number)
        await self._ask(exchange, request, "keeping a program in the background", timeout_s)

    async def count(self, *, timeout_s: float | None = 30.0) -> dict[str, int]:
        """What the broker counts: `programs` that run, bytes `sent` to the guest and `received` from it, and others."""
        exchange = self._new_exchange()
        request = encode_request(exchange.stream, BrokerOpcode.STATUS)
        answer = await self._ask(exchange, request, "asking the machine's broker", timeout_s)
        with self.making_sense():
            return message.parse_counts(answer)

    async def read_kept(self, number: int, from_out: int, from_err: int) -> KeptOutput:
        """What the program wrote from there on, once there is something or it has ended. 0 is the machine's console."""
        exchange = self._new_exchange(_explain)
        request = message.output_request(exchange.stream, number, from_out, from_err)
        try:
            answer = await self._ask(exchange, request, "reading what a program wrote", None)
        finally:
            if self._is_open(exchange):  # given up: whoever waits takes a place of the broker's
                self.kill_nowait(exchange.stream)
        with self.making_sense():
            return message.parse_output(answer)

    async def signal_kept(self, number: int, signal: int, *, timeout_s: float | None = 10.0) -> None:
        """The program's process group got the signal, SIGKILL all that it started, or it had ended."""
        exchange = self._new_exchange(_explain)
        request = message.signal_request(exchange.stream, number, signal)
        try:
            await self._ask(exchange, request, "sending a signal", timeout_s)
        except _NoSuchProgramError:
            return

    def kill_kept_nowait(self, number: int) -> None:
        """The program is about to be killed, if there is one, or it is about to start."""
        if self.lost is None:
            exchange = self._new_exchange()
            self._begin(exchange, message.signal_request(exchange.stream, number, signals.SIGKILL))


class _NoSuchProgramError(GuestError):
    """The program has ended, or made room for another."""


def _explain(failure: Failure) -> GuestError:
    if failure.code == ErrorCode.NOT_FOUND:
        return _NoSuchProgramError(failure.message)
    return explain_plainly(failure)


@guarded
class BackgroundProcess(GuestProcess):
    """A program that runs on when its client leaves. `aclose()` leaves it as it is; `kill` ends it.

    Of its output the end is kept, at least 64 KiB of each stream.
    """

    def __init__(self, line: BackgroundRequests, number: int, *, name: str, pid: int) -> None:
        self.pid = pid
        self.name = name
        self._kept = line
        self._number = number
        self._status: ExecStatus | None = None

    def __del__(self) -> None:
        """Nothing: it runs on."""

    @property
    def has_ended(self) -> bool:
        """The program has ended, and this object was told so by `output` or `wait`."""
        return self._status is not None

    @property
    def unread(self) -> Sequence[tuple[Channel, bytes]]:
        """Nothing: what it wrote is kept by its broker."""
        return ()

    async def output(self) -> AsyncIterator[tuple[Channel, bytes]]:
        """What is kept of what the program wrote, then what it writes, until its end.

        It does not wait for its reader: of what a slow one does not take in time the end is kept.
        """
        out = err = 0
        while True:
            told = await self._look(out, err)
            out, err = told.from_out + len(told.stdout), told.from_err + len(told.stderr)
            for channel, data in ((Channel.STDOUT, told.stdout), (Channel.STDERR, told.stderr)):
                if data:
                    yield channel, data
            if told.end is not None and not told.stdout and not told.stderr:
                return

    async def write_stdin(self, data: bytes, *, timeout_s: float | None = None) -> None:
        """Raises `Closed`: it has no standard input."""
        raise Closed(f"the standard input of {self.name}")

    async def close_stdin(self) -> None:
        """Nothing: it has no standard input."""

    async def kill(self, signal: int | str = signals.SIGKILL, *, timeout_s: float | None = 10.0) -> None:
        """The signal was sent to the program's process group. Nothing happens when it has ended."""
        await self._kept.signal_kept(self._number, find_signal(signal), timeout_s=timeout_s)

    async def resize(self, rows: int, columns: int, *, timeout_s: float | None = 10.0) -> None:
        """Raises `ConfigError`: it has no terminal."""
        raise ConfigError("rows", rows, f"{self.name} has no terminal", hint="start it with pty=(rows, columns)")

    async def wait(self, *, timeout_s: float | None = None) -> ExecStatus:
        """How the program ended. A deadline that passes, or a cancellation, changes nothing."""
        async with deadline(f"waiting for {self.name}", timeout_s):
            told = await self._look(_BEYOND, _BEYOND)
        assert told.end is not None
        return told.end

    async def aclose(self) -> None:
        """Nothing: the program runs on."""

    async def _look(self, from_out: int, from_err: int) -> KeptOutput:
        self._kept.bound.check()
        told = await self._kept.read_kept(self._number, from_out, from_err)
        self._status = told.end
        return told
