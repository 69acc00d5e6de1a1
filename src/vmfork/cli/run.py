"""`vmfork run`: fork, run one command, leave nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from vmfork.cli.report import print_json, show_progress
from vmfork.config import VMConfig
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError
from vmfork.units import parse_duration_s, parse_size_mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.agent.process import GuestProcess
    from vmfork.template import Template
    from vmfork.vm.vm import VM

TIMED_OUT = 124


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-t", "--template", "name", help="Fork this template [default: default, built the first time].")
@click.option("-e", "--env", "env", multiple=True, metavar="K=V", help="Environment of the command.")
@click.option("-w", "--workdir", default="", help="Folder the command starts in.")
@click.option("--timeout", help="Time limit of the command, as 30, 1.5s, 5m.")
@click.option("--cpus", type=int, help="Virtual CPUs [1].")
@click.option("--memory", help="Guest memory, as 256M, 1G or MiB [256M].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the command has ended.")
@click.argument("argv", nargs=-1, required=True, metavar="CMD [ARG]...")
def command(
    name: str | None,
    env: Sequence[str],
    workdir: str,
    timeout: str | None,
    cpus: int | None,
    memory: str | None,
    as_json: bool,
    argv: Sequence[str],
) -> int:
    """Run CMD in a fresh fork, and exit with its status.

    125 vmfork itself failed, 124 the time limit passed, 127 and 126 the command was not found or is not executable,
    128+n it was ended by signal n.
    """
    config = _config(cpus, memory)
    limit = None if timeout is None else parse_duration_s(timeout, field="--timeout")
    variables = dict(_split(pair) for pair in env)
    return asyncio.run(_run(name, config, cpus or memory, variables, workdir, limit, as_json, argv))


def _config(cpus: int | None, memory: str | None) -> VMConfig:
    standard = VMConfig()
    return VMConfig(
        cpus=standard.cpus if cpus is None else cpus,
        memory_mib=standard.memory_mib if memory is None else parse_size_mib(memory, field="--memory"),
    )


def _split(pair: str) -> tuple[str, str]:
    key, separator, value = pair.partition("=")
    if not separator:
        raise ConfigError("--env", pair, f"{pair!r} is not K=V")
    return key, value


async def _run(
    name: str | None,
    config: VMConfig,
    sized: object,
    env: dict[str, str],
    workdir: str,
    limit: float | None,
    as_json: bool,
    argv: Sequence[str],
) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    template = await _open(name, config, sized)
    try:
        async with await template.fork(env=env) as vm:
            if as_json:
                return await _run_collected(vm, argv, workdir, limit)
            return await _run_streamed(vm, argv, workdir, limit)
    except ExecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except DeadlineExceeded as error:
        if limit is None or not error.operation.startswith(argv[0]):
            raise
        print(f"error: {error}", file=sys.stderr)
        return TIMED_OUT


async def _open(name: str | None, config: VMConfig, sized: object) -> Template:
    from vmfork.template import Template  # noqa: PLC0415 - the heavy part starts here

    if name is None:
        own = "default" if config == VMConfig() else f"default-{config.cpus}c-{config.memory_mib}m"
        return await Template.ensure(own, config, progress=show_progress)
    template = await Template.open(name, config=config)
    if sized and (template.manifest.cpus, template.manifest.memory_mib) != (config.cpus, config.memory_mib):
        raise ConfigError(
            "--cpus/--memory",
            sized,
            f"template {name!r} has {template.manifest.cpus} CPU and {template.manifest.memory_mib} MiB",
            hint="leave the size out, or build a template of that size",
        )
    return template


async def _run_collected(vm: VM, argv: Sequence[str], workdir: str, limit: float | None) -> int:
    result = await vm.exec(argv, cwd=workdir, timeout_s=limit)
    print_json(
        {
            "exit_code": result.exit_code,
            "stdout": result.stdout,
            "stderr": result.stderr,
            "duration_s": result.duration_s,
            "fork_s": vm.timings.total_s,
            "vm": vm.id,
        }
    )
    return result.exit_code


async def _run_streamed(vm: VM, argv: Sequence[str], workdir: str, limit: float | None) -> int:
    async with await vm.start(argv, cwd=workdir, stdin=True) as process:
        feeder = asyncio.create_task(_feed(process))
        try:
            async with asyncio.timeout(limit):
                async for channel, data in process.output():
                    stream = sys.stdout.buffer if channel == 1 else sys.stderr.buffer
                    stream.write(data)
                    stream.flush()
                return (await process.wait()).exit_code
        except TimeoutError:
            assert limit is not None
            raise DeadlineExceeded(argv[0], limit) from None
        except BrokenPipeError:
            # Nobody reads our output any more: as a shell would have it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        finally:
            feeder.cancel()
            with suppress(asyncio.CancelledError):
                await feeder


async def _feed(process: GuestProcess) -> None:
    """Standard input goes to the command until either ends. Read in a daemon thread: it may never end."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)

    def read() -> None:
        with suppress(Exception):
            while True:
                data = os.read(0, 65536)
                asyncio.run_coroutine_threadsafe(pieces.put(data), loop).result()
                if not data:
                    return

    threading.Thread(target=read, daemon=True).start()
    from vmfork.errors import VMForkError  # noqa: PLC0415

    with suppress(VMForkError):
        while data := await pieces.get():
            await process.write_stdin(data)
        await process.close_stdin()
