"""What was last run in a machine: noted as it goes on, told when its test has failed."""

from __future__ import annotations

from collections import deque
from contextlib import aclosing, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import ref

from vmfork.errors import VMForkError
from vmfork.owner import gives_owner
from vmfork.wire.command import shell_argv
from vmfork.wire.frame import Channel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vmfork.aio import VM, GuestProcess
    from vmfork.machine.event import ProgramEvent
    from vmfork.wire.message import ExecStatus

    # Waits for something of the machine's event loop, from outside of it.
    Ask = Callable[[Callable[[], Awaitable[ExecStatus]]], ExecStatus]

_LAST = 5
_SHOWN = 2_000
_ASK_LIMIT_S = 5.0
_SHELL = shell_argv("")[:-1]
_STREAMS = {Channel.STDOUT: "stdout", Channel.STDERR: "stderr"}


class Recorder:
    """The last programs and pieces of code of one machine, which alone pays for that: its methods are put into others.

    A `shell` is an `exec`.
    """

    def __init__(self, vm: VM) -> None:
        self._last: deque[_Noted] = deque(maxlen=_LAST)
        vm.exec = self._of_call("exec", vm.exec)  # type: ignore[method-assign]
        vm.run_code = self._of_call("run_code", vm.run_code)  # type: ignore[method-assign]
        vm.start = self._of_start(vm.start)  # type: ignore[method-assign]
        vm.stream = self._of_stream(vm.stream)  # type: ignore[method-assign]

    def describe(self, ask: Ask) -> list[str]:
        """Each of the last in the order of their beginnings: how it ended, and the end of what it wrote."""
        return [noted.describe(ask) for noted in self._last]

    def _begin(self, name: str, args: tuple[Any, ...]) -> _Noted:
        noted = _Noted(_tell(name, args))
        self._last.append(noted)
        return noted

    def _of_call(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        @wraps(call)
        async def noting(*args: Any, **options: Any) -> Any:
            noted = self._begin(name, args)
            try:
                result = await call(*args, **options)
            except VMForkError as error:
                noted.fail(error)
                raise
            noted.finish(result)
            return result

        return noting

    def _of_start(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @gives_owner
        @wraps(call)
        async def noting(*args: Any, **options: Any) -> GuestProcess:
            noted = self._begin("start", args)
            try:
                process: GuestProcess = await call(*args, **options)
            except VMForkError as error:
                noted.fail(error)
                raise
            noted.follow(process)
            return process

        return noting

    def _of_stream(self, call: Callable[..., AsyncIterator[ProgramEvent]]) -> Callable[..., Any]:
        @wraps(call)
        async def noting(*args: Any, **options: Any) -> AsyncIterator[ProgramEvent]:
            noted = self._begin("stream", args)
            events: Any = call(*args, **options)
            try:
                async with aclosing(events):
                    async for event in events:
                        if event.result is None:
                            noted.take(event.kind, event.data)
                        else:
                            noted.finish(event.result)
                        yield event
            except VMForkError as error:
                noted.fail(error)
                raise

        return noting


class _Noted:
    """A program or a piece of code. It has not ended until something is told of its end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._end = ""
        self._written = dict.fromkeys(_STREAMS.values(), b"")
        self._process: ref[GuestProcess] | None = None
        self._is_closed = False

    def take(self, stream: str, data: bytes | str) -> None:
        """It wrote that; the end is kept."""
        piece = data.encode(errors="replace") if isinstance(data, str) else data
        self._written[stream] = (self._written[stream] + piece[-_SHOWN:])[-_SHOWN:]

    def finish(self, result: Any) -> None:
        """It has ended with what an `ExecResult` or a `CodeResult` tells."""
        if hasattr(result, "exit_code"):
            self._end = f"exit status {result.exit_code}"
        else:
            self._end = f"value {result.value}, error {result.error}"
        self._take_all(result)

    def fail(self, error: VMForkError) -> None:
        """The call has raised `error`, which may have what was written until then."""
        self._end = repr(error)
        self._take_all(error)

    def _take_all(self, source: Any) -> None:
        for stream in self._written:
            self.take(stream, getattr(source, stream, b"") or b"")

    def follow(self, process: GuestProcess) -> None:
        """The program was started. What its owner takes of its output is noted, and what nobody took at its end.

        It is held by its owner alone: one that is dropped ends, as it does elsewhere.
        """
        kind, held = type(process), ref(process)
        self._process = held

        @wraps(kind.output)
        async def output() -> AsyncIterator[tuple[Channel, bytes]]:
            pieces: Any = kind.output(_present(held))
            async with aclosing(pieces):
                async for channel, data in pieces:
                    self.take(_STREAMS[channel], data)
                    yield channel, data

        @wraps(kind.aclose)
        async def aclose() -> None:
            process = _present(held)
            self._take_unread(process)
            self._is_closed = True
            if not process.has_ended:
                self._end = self._end or "ran until it was closed"
            await kind.aclose(process)

        process.output = output  # type: ignore[method-assign]
        process.aclose = aclose  # type: ignore[method-assign]

    def _take_unread(self, process: GuestProcess) -> None:
        for channel, data in () if self._is_closed else process.unread:
            self.take(_STREAMS[channel], data)

    def _find_end(self, ask: Ask) -> str:
        if self._end or self._process is None:
            return self._end or "has not ended"
        if (process := self._process()) is None:
            return "was dropped, and so ended"
        self._take_unread(process)
        if process.has_ended:
            with suppress(VMForkError, RuntimeError):  # its machine, or its event loop, may be gone
                return f"exit status {ask(lambda: process.wait(timeout_s=_ASK_LIMIT_S)).exit_code}"
        return "has not ended"

    def describe(self, ask: Ask) -> str:
        """What it was, how it ended, and what it wrote last."""
        lines = [f"{self._what}: {self._find_end(ask)}"]
        for stream, data in self._written.items():
            if data:
                lines.append(f"    {stream}: {data.decode(errors='replace').rstrip()}")
        return "\n".join(lines)


def _present(held: ref[GuestProcess]) -> GuestProcess:
    """The program, whose own method was called."""
    process = held()
    assert process is not None
    return process


def _tell(name: str, args: tuple[Any, ...]) -> str:
    """The call as its test has it, at most so much of it."""
    argv = args[0] if args else ()
    if name == "exec" and isinstance(argv, (list, tuple)) and tuple(argv[:-1]) == tuple(_SHELL):
        name, args = "shell", (argv[-1], *args[1:])
    return f"{name}({', '.join(map(repr, args))[:_SHOWN]})"
