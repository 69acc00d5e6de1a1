"""A program that is run to its end in a running machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vmfork.errors import ConfigError, ExecError
from vmfork.machine.decoding import PLAIN, REMEDY
from vmfork.machine.event import ProgramEvent
from vmfork.machine.result import ExecResult
from vmfork.machine.trace import trace_program
from vmfork.wire.frame import Channel
from vmfork.wire.given import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from vmfork.machine.decoding import Decoder, Decoding, OutputListener
    from vmfork.machine.running import Running
    from vmfork.wire.command import Command
    from vmfork.wire.message import ExecStatus

_NAMES = {Channel.STDOUT: "standard output", Channel.STDERR: "standard error"}


async def run_program(
    running: Running,
    command: Command,
    *,
    input: bytes | None = None,  # noqa: A002 - the name subprocess gave it
    listeners: Mapping[Channel, OutputListener] | None = None,
    decoding: Decoding | None = None,
    max_output: int | None = MOST_BYTES,
    timeout_s: float | None = None,
    grace_s: float = 0.0,
) -> ExecResult:
    """The program has ended; what it wrote and its exit status, whatever that is.

    Raises `ExecError` (127, 126) when it cannot be started. After `timeout_s` seconds it is sent SIGTERM, and `grace_s`
    later killed with all that it started, and `DeadlineExceeded` carries what it wrote so far; so does `LimitExceeded`
    when that is more than `max_output` bytes. `None` is no limit. What a listener was told is not kept.
    """
    begun = time.perf_counter()
    _check_grace(timeout_s, grace_s)
    told = {channel: _Telling(listener, channel, decoding) for channel, listener in (listeners or {}).items()}
    status, stdout, stderr = await running.agent.exec(
        command,
        input=input,
        sinks={channel: each.tell for channel, each in told.items()},
        max_output=max_output,
        timeout_s=timeout_s,
        grace_s=grace_s,
    )
    for each in told.values():
        each.end()
    trace_program(command.argv[0], time.perf_counter() - begun, status.exit_code)
    return _checked(_result(command, status, stdout, stderr, decoding or PLAIN))


async def stream_program(
    running: Running,
    command: Command,
    *,
    decoding: Decoding | None = None,
    timeout_s: float | None = None,
    grace_s: float = 0.0,
) -> AsyncGenerator[ProgramEvent, None]:
    """What the program writes, as it comes, then its end. It runs no longer than somebody asks for events."""
    _check_grace(timeout_s, grace_s)
    begun = time.perf_counter()
    process = await running.agent.start_exec(command, timeout_s=timeout_s, life_s=timeout_s, grace_s=grace_s)
    decoders = {} if decoding is None else {channel: decoding.decoder(name) for channel, name in _NAMES.items()}
    async with process:
        async for channel, data in process.output():
            text = decoders[channel].decode(data) if decoders else ""
            yield ProgramEvent(_kind(channel), data, text)
        status = await process.wait()
    for channel, decoder in decoders.items():
        if rest := decoder.decode(b"", is_last=True):
            yield ProgramEvent(_kind(channel), b"", rest)
    trace_program(command.argv[0], time.perf_counter() - begun, status.exit_code)
    yield ProgramEvent("end", result=_result(command, status, b"", b"", decoding or PLAIN))


class _Telling:
    """Tells a listener what comes on one channel, as text where that is asked for."""

    def __init__(self, listener: Callable[[Any], object], channel: Channel, decoding: Decoding | None) -> None:
        self._listener = listener
        self._decoder: Decoder | None = None if decoding is None else decoding.decoder(_NAMES[channel])

    def tell(self, data: bytes) -> None:
        if self._decoder is None:
            self._listener(data)
        elif text := self._decoder.decode(data):
            self._listener(text)

    def end(self) -> None:
        if self._decoder is not None and (text := self._decoder.decode(b"", is_last=True)):
            self._listener(text)


def find_listeners(on_stdout: OutputListener | None, on_stderr: OutputListener | None) -> dict[Channel, OutputListener]:
    """Those that there are, by what they listen to."""
    given = {Channel.STDOUT: on_stdout, Channel.STDERR: on_stderr}
    return {channel: listener for channel, listener in given.items() if listener is not None}


def _kind(channel: Channel) -> Any:
    return "stdout" if channel is Channel.STDOUT else "stderr"


def _check_grace(timeout_s: float | None, grace_s: float) -> None:
    if grace_s and timeout_s is None:
        raise ConfigError("grace_s", grace_s, "follows a time limit, and there is none", hint="give timeout_s as well")


def _result(command: Command, status: ExecStatus, stdout: bytes, stderr: bytes, decoding: Decoding) -> ExecResult:
    return ExecResult(
        argv=tuple(command.argv),
        exit_code=status.exit_code,
        duration_s=status.duration_s,
        stdout_bytes=stdout,
        stderr_bytes=stderr,
        cpu_s=status.cpu_s,
        peak_memory_bytes=status.peak_memory_bytes,
        exceeded=status.exceeded,
        decoding=decoding,
    )


def _checked(result: ExecResult) -> ExecResult:
    """The result. Raises `ExecError`, which carries the bytes, when it is no text to a decoding that is strict."""
    if result.decoding is not PLAIN:
        try:
            _ = result.stdout, result.stderr
        except UnicodeError as error:
            raise ExecError(
                result.argv,
                result.exit_code,
                f"what it wrote is not {result.decoding.encoding}: {error.args[-1]}",
                stdout=result.stdout_bytes,
                stderr=result.stderr_bytes,
                hint=REMEDY,
            ) from error
    return result
