"""`vmfork run`: one command in a fork of its own."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import click

from vmfork.cli.carry import fetch_outputs, read_baggage, read_output
from vmfork.cli.loop import run_async
from vmfork.cli.machine import Wanted, take_vm
from vmfork.cli.options import (
    VARIABLE_HELP,
    cpus_option,
    get_settings,
    isolation_option,
    json_option,
    memory_option,
    no_factory_option,
    parse_variable,
    template_option,
)
from vmfork.cli.show import (
    command_hint,
    describe_failure,
    print_failure,
    show_json,
)
from vmfork.cli.status import OWN_FAILURE, PIPE_CLOSED, TIME_LIMIT, ProgramCommand
from vmfork.cli.streams import beside, feed, is_readable_input, write_all
from vmfork.cli.terminal import check_terminal, lend_terminal, read_window, terminal_env
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, LimitExceeded, VMForkError
from vmfork.machine.trace import detailed_timings
from vmfork.units import MIB, parse_duration_s, parse_size_mib
from vmfork.wire.frame import Channel
from vmfork.wire.given import MOST_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.agent.process import GuestProcess
    from vmfork.api.vm import VM
    from vmfork.cli.carry import Output
    from vmfork.machine.timings import Timings
    from vmfork.wire.command import Window
    from vmfork.wire.message import ExecStatus

_NOT_STARTED = {
    126: "a program has its execute bit set, and its interpreter is in the image",
    127: "is it spelt as in the guest? An image with more in it: vmfork image build NAME --package PACKAGE",
}


class _Kept:
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


@click.command("run", cls=ProgramCommand, context_settings={"allow_interspersed_args": False})
@template_option
@click.option("-e", "--env", "variables", multiple=True, metavar="K[=V]", help=VARIABLE_HELP)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="HOST:GUEST",
    help="Put a file or a folder into the fork, with modes. Repeatable.",
)
@click.option(
    "--out",
    "outs",
    multiple=True,
    metavar="GUEST[:HOST]",
    help="Copy a file or a folder out of the fork when CMD has ended, also when it failed. Repeatable.",
)
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on, as is always done.")
@click.option("--tty", is_flag=True, help="Give CMD a terminal: ours, for as long as it runs.")
@click.option("-it", "-ti", "both", is_flag=True, help="The two above. Alone, -t names a template.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Run in this folder of the guest.")
@click.option("--timeout", metavar="S", help="Kill the command after this time: 30, 1.5s, 5m. Exit status 124.")
@cpus_option
@memory_option
@isolation_option
@json_option
@click.option(
    "--max-output", metavar="SIZE", help="With --json, end a command that writes more than this. Default: 256M."
)
@no_factory_option
@click.option("--wait", metavar="S", help="Wait this long for the host to have room for the fork: 30, 5m.")
@click.option(
    "--timings", is_flag=True, help="Tell on standard error where the machine came from and where the time went."
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD [ARG]...")
def command(
    name: str | None,
    variables: tuple[str, ...],
    files: tuple[str, ...],
    outs: tuple[str, ...],
    interactive: bool,
    tty: bool,
    both: bool,
    workdir: str,
    timeout: str | None,
    cpus: int | None,
    memory: str | None,
    require_isolation: str | None,
    as_json: bool,
    max_output: str | None,
    no_factory: bool,
    wait: str | None,
    timings: bool,
    argv: tuple[str, ...],
) -> int:
    """Run CMD in a fresh fork, pass its input and output through, leave nothing.

    Without -t the fork comes from the factory, where [factory] names a template, a pool or a server; else from the
    template `default`, built the first time. The exit status is the command's; 124 when its time was up, 125 when
    vmfork failed, 126 when CMD cannot be run, 127 when there is none, 128+n when signal n ended it.
    """
    made = {"vm.require_isolation": require_isolation, "vm.wait_s": wait}
    settings = get_settings({"vm.cpus": cpus, "vm.memory_mib": memory, **made})
    limit_s = None if timeout is None else parse_duration_s(timeout, field="timeout")
    if limit_s is not None and limit_s <= 0:
        raise ConfigError("timeout", timeout, "must be more than 0", hint="leave it out for no limit")
    kept = _Kept(MOST_BYTES if max_output is None else parse_size_mib(max_output, field="max-output") * MIB)
    if max_output is not None and not as_json:
        hint = "give --json as well: without it output is passed on as it comes"
        raise ConfigError("max-output", max_output, "limits what --json keeps", hint=hint)
    del interactive  # input is passed on all the same
    has_terminal = tty or both
    if has_terminal:
        _check_lending(as_json=as_json)
    env = (terminal_env() if has_terminal else {}) | dict(parse_variable(text) for text in variables)
    baggage = read_baggage(files)
    outputs = [read_output(text) for text in outs]

    wanted = Wanted(
        settings=settings,
        factory=None if no_factory else get_settings(made).factory,
        template=name,
        files=baggage.files,
        cpus=None if cpus is None else settings.vm.cpus,
        memory_mib=None if memory is None else settings.vm.memory_mib,
    )

    async def work() -> int:
        async with AsyncExitStack() as stack:
            with detailed_timings() if timings else nullcontext():
                vm = await take_vm(wanted, stack)
            await baggage.put_folders(vm)
            forked = time.perf_counter()
            run = partial(_run, vm, argv, env=env, workdir=workdir, limit_s=limit_s, outputs=outputs)
            status = await run(kept=kept if as_json else None, window=read_window() if has_terminal else None)
            if timings:
                click.echo(f"from    {vm.source}", err=True)
                _show_timings(vm.timings, time.perf_counter() - forked)
            return status

    return run_async(work())


def _show_timings(timings: Timings, program_s: float) -> None:
    """One line for each phase, in its order, then the fork as a whole and the program."""
    phases = ("spawn", "load", "adopt", "clock", "thaw", "fit")
    told = {name: getattr(timings, f"{name}_s") for name in phases}
    told |= {"fork": timings.total_s, "program": program_s}
    for name, seconds in told.items():
        if seconds or name != "fit":
            click.echo(f"{name:8}{seconds * 1000:9.1f} ms", err=True)


def _check_lending(*, as_json: bool) -> None:
    check_terminal()
    if as_json:
        hint = "leave out one of the two"
        raise ConfigError("tty", None, "what is shown on a terminal is not kept for --json", hint=hint)


async def _run(
    vm: VM,
    argv: Sequence[str],
    *,
    env: dict[str, str],
    workdir: str,
    limit_s: float | None,
    outputs: Sequence[Output],
    kept: _Kept | None,
    window: Window | None,
) -> int:
    has_input = is_readable_input(0)
    begin = time.perf_counter()
    failure: VMForkError | None = None
    try:
        started = vm.start(argv, env=env, cwd=workdir, stdin=has_input, pty=window)
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


async def _stream(process: GuestProcess, kept: _Kept | None, *, has_input: bool) -> ExecStatus:
    """The process has ended, and its output was passed on, or kept."""
    async with beside(feed(process)) if has_input else nullcontext():
        async for channel, data in process.output():
            if kept is not None:
                kept.add(channel, data, of=process.name)
            else:
                await write_all(1 if channel == Channel.STDOUT else 2, data)
        return await process.wait()
