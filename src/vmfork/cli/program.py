"""A command in a machine, as `run` and `exec` have it: streams passed through, its status, or all of it as JSON."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

from vmfork.cli.carry import fetch_outputs
from vmfork.cli.show import command_hint, describe_failure, print_failure, show_json
from vmfork.cli.status import OWN_FAILURE, PIPE_CLOSED, TIME_LIMIT
from vmfork.cli.streams import beside, feed, is_readable_input
from vmfork.cli.terminal import check_terminal, lend_terminal
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, LimitExceeded, VMForkError
from vmfork.host.wait import write_all
from vmfork.units import MIB, parse_size_mib
from vmfork.wire.frame import Channel
from vmfork.wire.given import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.agent.process import GuestProcess
    from vmfork.api.vm import VM
    from vmfork.cli.carry import Output
    from vmfork.wire.command import Window
    from vmfork.wire.message import ExecStatus

_NOT_STARTED = {
    126: "a program has its execute bit set, and its interpreter is in the image",
    127: "is it spelt as in the guest? An image with more in it: vmfork image build NAME --package PACKAGE",
}


class Kept:
    """What a command wrote, `limit_bytes` of both streams together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._streams = {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}

    def add(self, channel: Channel, data: bytes, *, of: str) -> None:
        """`data` is kept. Raises `LimitExceeded` where the limit is passed, and as much as that is kept."""
        room = self._limit_bytes - sum(map(len, self._streams.values()))
        self._streams[channel] += data[:room]
        if len(data) > room:
            raise LimitExceeded(of, self._limit_bytes, hint="allow more with --max-output, or leave --json away")

    def text(self, channel: Channel) -> str:
        return self._streams[channel].decode(errors="replace")


def make_kept(max_output: str | None, *, as_json: bool) -> Kept | None:
    """What keeps the output for `--json`; `None` where it is passed on."""
    if max_output is not None and not as_json:
        hint = "give --json as well: without it output is passed on as it comes"
        raise ConfigError("max-output", max_output, "limits what --json keeps", hint=hint)
    limit_bytes = MOST_BYTES if max_output is None else parse_size_mib(max_output, field="max-output") * MIB
    return Kept(limit_bytes) if as_json else None


def check_lending(*, as_json: bool) -> None:
    """Raises `ConfigError` when our terminal cannot be lent."""
    check_terminal()
    if as_json:
        hint = "leave out one of the two"
        raise ConfigError("tty", None, "what is shown on a terminal is not kept for --json", hint=hint)


async def run_command(
    vm: VM,
    argv: Sequence[str],
    *,
    env: dict[str, str],
    workdir: str,
    user: str = "",
    limit_s: float | None,
    outputs: Sequence[Output] = (),
    kept: Kept | None,
    window: Window | None,
) -> int:
    """The exit status of the command, or what stands for it. What went wrong was told."""
    has_input = is_readable_input(0)
    begin = time.perf_counter()
    failure: VMForkError | None = None
    try:
        started = vm.start(argv, env=env, cwd=workdir, user=user, stdin=has_input, pty=window)
        async with asyncio.timeout(limit_s), started as process:
            if window is not None:
                status = await lend_terminal(process)
            else:
                status = await _stream(process, kept, has_input=has_input)
            code, duration_s = status.exit_code, status.duration_s
    except ExecError as error:  # 126, 127
        error.hint = error.hint or _NOT_STARTED.get(error.exit_code, "")
        failure = error
        code, duration_s = error.exit_code, time.perf_counter() - begin
    except LimitExceeded as error:
        failure = error
        code, duration_s = OWN_FAILURE, time.perf_counter() - begin
    except BrokenPipeError:
        code, duration_s = PIPE_CLOSED, time.perf_counter() - begin
    except TimeoutError as error:
        if limit_s is None or isinstance(error, DeadlineExceeded):
            raise
        failure = DeadlineExceeded(f"the command {argv[0]!r}", limit_s, hint="allow it more with --timeout")
        code, duration_s = TIME_LIMIT, time.perf_counter() - begin
    if failure is not None:
        print_failure(str(failure), command_hint(failure), failure.details())
    fetched = await fetch_outputs(vm, outputs)
    code = code or _tell_missing(fetched)
    if kept is not None:
        show_json(
            {
                "exit_code": code,
                # Only this tells a time limit from a command that ended with 124 by itself.
                "error": failure and describe_failure(failure.code, str(failure), command_hint(failure)),
                "stdout": kept.text(Channel.STDOUT),
                "stderr": kept.text(Channel.STDERR),
                "duration_s": duration_s,
                "out": [_describe_output(output) for output in fetched],
                "timings": asdict(vm.timings),
                "source": asdict(vm.source),
                **({} if vm.network == "none" else {"network": [asdict(each) for each in vm.network_log]}),
            }
        )
    return code


def _tell_missing(fetched: Sequence[Output]) -> int:
    """Each that is not here is told of; the exit status of a command that succeeded itself."""
    failures = [output.failure for output in fetched if output.failure is not None]
    for failure in failures:
        print_failure(str(failure), command_hint(failure), failure.details())
    return OWN_FAILURE if failures else 0


def _describe_output(output: Output) -> dict[str, object]:
    error = output.failure
    told = error and describe_failure(error.code, str(error), command_hint(error))
    return {"guest": output.guest, "host": output.host, "error": told}


async def _stream(process: GuestProcess, kept: Kept | None, *, has_input: bool) -> ExecStatus:
    """The process has ended, and its output was passed on, or kept."""
    async with beside(feed(process)) if has_input else nullcontext():
        async for channel, data in process.output():
            if kept is not None:
                kept.add(channel, data, of=process.name)
            else:
                await write_all(1 if channel == Channel.STDOUT else 2, data)
        return await process.wait()
