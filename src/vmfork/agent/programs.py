"""The requests about programs in the guest."""

from __future__ import annotations

import asyncio
import shlex
import signal as signals
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import CollectedRun, StreamedRun
from vmfork.agent.process import GuestProcess
from vmfork.errors import DeadlineExceeded, ExecError, GuestError, LimitExceeded
from vmfork.hint import Hint
from vmfork.wire import message
from vmfork.wire.code import ErrorCode
from vmfork.wire.command import NO_LIMITS
from vmfork.wire.frame import FIRST_WITH_ROOM, FIRST_WITH_TERMINALS
from vmfork.wire.given import MOST_BYTES
from vmfork.wire.message import LISTS_IN_REQUEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmfork.agent.exchange import Explain, Run
    from vmfork.wire.command import Command, Window
    from vmfork.wire.frame import Channel
    from vmfork.wire.message import ExecStatus, Failure

# After its limit a process is killed. It has this long to be gone, and its output to be here.
_KILL_LIMIT_S = 2.0
_NAME_LIMIT = 100
_TOO_MUCH = Hint(
    "take more (max_output), or take it as it comes: vm.start(...) and its output()",
    "have it write to a file of the guest",
)
_TOO_OLD = "build the image and its templates again with this vmfork"
_TOO_LONG = "write it to a file of the guest, or send it as input"

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as a shell says it


def name_of(argv: Sequence[str]) -> str:
    """The command for a message: one line, not too long."""
    line = shlex.join(argv)
    return line if len(line) <= _NAME_LIMIT else line[: _NAME_LIMIT - 1] + "…"


def _check_needs_neither(command: Command) -> None:
    """Raises `GuestError` when the command asks for what came with `FIRST_WITH_TERMINALS`."""
    if command.window is not None or command.limits != NO_LIMITS:
        what = "terminals" if command.window is not None else "limits for one program"
        raise GuestError(f"the agent in this machine has no {what}", hint=_TOO_OLD)


def explain_start(command: Command) -> Explain:
    """What it means that the command was not started."""

    def explain(failure: Failure) -> GuestError:
        match failure.code:
            case ErrorCode.NOT_FOUND:
                return ExecError(command.argv, _NOT_FOUND, "no such program in the guest")
            case ErrorCode.NOT_EXECUTABLE:
                return ExecError(command.argv, _NOT_EXECUTABLE, f"cannot be run: {failure.message}")
            case ErrorCode.TOO_LONG:
                return ExecError(command.argv[:1], _NOT_EXECUTABLE, failure.message, hint=_TOO_LONG)
            case ErrorCode.NO_DIRECTORY:
                folder = f"the folder {command.cwd!r}" if command.cwd else "the working folder of its image"
                return GuestError(f"{folder} cannot be entered in the guest", hint="make it first, or give another")
            case ErrorCode.NO_USER:
                user = f"user {command.user!r}" if command.user else "such user as its image names"
                return GuestError(f"the guest has no {user}", hint="its users are in its /etc/passwd: give one of them")
            case _:
                return GuestError(f"{name_of(command.argv)} was not started: {failure.message} ({failure.code})")

    return explain


class ProgramRequests(Connection):
    """Programs in the guest.

    Raises `ExecError` with exit code 127 when there is no such program and 126 when it cannot be run, and `GuestError`
    when the folder or the user is not there.
    """

    async def start_exec(
        self,
        command: Command,
        *,
        timeout_s: float | None = 30.0,
        life_s: float | None = None,
        grace_s: float = 0.0,
    ) -> GuestProcess:
        """The program runs. `timeout_s` bounds its start, `life_s` its life, after which it ends as that of `exec`.

        `DeadlineExceeded` is raised then by who waits for its end or takes its output, behind the last of it.
        """
        run = StreamedRun(self._new_stream(), send=self.send, grant=self.grant, explain=explain_start(command))
        name = name_of(command.argv)
        try:
            async with deadline(f"starting {name}", timeout_s):
                await self._begin_run(run, command, contained=life_s is not None)
                pid = await run.started
        except BaseException:
            self.abandon(run)
            raise
        if life_s is not None:
            run.lifetime = asyncio.create_task(self._end_when_late(run, name, life_s, grace_s))
        has_terminal = command.window is not None
        return GuestProcess(self, run, name=name, pid=pid, has_stdin=command.stdin, has_terminal=has_terminal)

    async def exec(
        self,
        command: Command,
        *,
        input: bytes | None = None,  # noqa: A002 - the name subprocess.run has for it
        sinks: Mapping[Channel, Callable[[bytes], object]] | None = None,
        max_output: int | None = MOST_BYTES,
        timeout_s: float | None = None,
        grace_s: float = 0.0,
    ) -> tuple[ExecStatus, bytes, bytes]:
        """How the program ended, and what it wrote to standard output and to standard error.

        Its standard input is `input`, then at its end. What comes on a channel that has a sink is given to that, and
        not kept; what the sink raises ends the program, and is raised. At the limit the program's process group is sent
        SIGTERM, where there is a `grace_s`; after that it is killed with everything that it started, and
        `DeadlineExceeded` has what was written so far. On cancel it is killed too. Whatever it leaves running when it
        ends by itself runs on. Once both streams together have more than `max_output` bytes it is killed as well, and
        `LimitExceeded` has the first of them.
        """
        if command.stdin != (input is not None):
            command = replace(command, stdin=input is not None)
        name = name_of(command.argv)
        run = CollectedRun(
            self._new_stream(),
            input,
            max_output,
            sinks=sinks or {},
            send=self.send,
            grant=self.grant,
            explain=explain_start(command),
            on_full=self._stop,
        )
        try:
            async with deadline(name, timeout_s):
                await self._begin_run(run, command, contained=timeout_s is not None)
                # The deadline cancels what is awaited, and the end is still wanted then.
                payload = await asyncio.shield(run.reply)
        except DeadlineExceeded as error:
            await self._end_late(run, grace_s)
            raise DeadlineExceeded(error.operation, error.limit_s, stdout=run.stdout, stderr=run.stderr) from None
        finally:
            self.abandon(run)
        if run.is_full:
            raise LimitExceeded(name, max_output or 0, stdout=run.stdout, stderr=run.stderr, hint=_TOO_MUCH)
        with self.making_sense():
            status = message.parse_exec(payload)
        return status, run.stdout, run.stderr

    async def _end_late(self, run: Run, grace_s: float) -> None:
        """It was sent SIGTERM, and SIGKILL when the grace was over, and has ended, as far as that can be waited for."""
        if grace_s and self.is_open(run):
            self.kill_nowait(run.stream, signals.SIGTERM)
            await asyncio.wait([run.reply], timeout=grace_s)
        if self.is_open(run):
            self.kill_nowait(run.stream)
            await asyncio.wait([run.reply], timeout=_KILL_LIMIT_S)

    async def _end_when_late(self, run: StreamedRun, name: str, life_s: float, grace_s: float) -> None:
        """The run has ended, by itself or because its time was up."""
        await asyncio.wait([run.reply], timeout=life_s)
        if run.has_ended:
            return
        run.late = DeadlineExceeded(name, life_s)
        await self._end_late(run, grace_s)
        # Whoever reads too slowly to see the end gets what has come, and the error.
        self.abandon(run)
        run.fail(run.late)

    def _stop(self, run: CollectedRun) -> None:
        """The program is being killed. Its end is waited for, but not for ever."""
        self.end_nowait(run.stream)
        asyncio.get_running_loop().call_later(_KILL_LIMIT_S, run.on_reply, b"")

    async def kill(self, stream: int, signal: int, *, timeout_s: float | None = 10.0) -> None:
        """The process group on that stream got the signal, SIGKILL all that was started there, or it had ended."""
        exchange = self._new_exchange(_explain_gone("the signal was not sent"))
        request = message.kill_request(exchange.stream, stream, signal)
        with suppress(_HasEndedError):
            await self._ask(exchange, request, "sending a signal", timeout_s)

    async def resize(self, stream: int, window: Window, *, timeout_s: float | None = 10.0) -> None:
        """The terminal of the program on that stream has the size of `window`, or the program had ended."""
        exchange = self._new_exchange(_explain_gone("the terminal has not the new size"))
        request = message.resize_request(exchange.stream, stream, window)
        with suppress(_HasEndedError):
            await self._ask(exchange, request, "resizing a terminal", timeout_s)

    async def _begin_run(self, run: Run, command: Command, *, contained: bool = False) -> None:
        def encode(protocol: int) -> bytes:
            has_room = protocol >= FIRST_WITH_ROOM
            request, lists = message.exec_request(run.stream, command, contained=contained and has_room)
            if protocol < FIRST_WITH_TERMINALS:
                _check_needs_neither(command)
            if lists and not has_room:
                reason = f"arguments and environment have {len(lists)} bytes, its agent takes {LISTS_IN_REQUEST}"
                raise ExecError(command.argv[:1], _NOT_EXECUTABLE, reason, hint=_TOO_OLD)
            if lists:
                run.send_lists(lists)
            return request

        await self._begin_in_turn(run, encode)


class _HasEndedError(GuestError):
    """The process that the request was about has ended."""


def _explain_gone(what: str) -> Explain:
    def explain(failure: Failure) -> GuestError:
        kind = _HasEndedError if failure.code == ErrorCode.NOT_FOUND else GuestError
        return kind(f"{what}: {failure.message}")

    return explain
