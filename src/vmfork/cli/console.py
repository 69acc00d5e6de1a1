"""`vmfork logs`: what a machine printed, or a program in its background."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmfork.api.vm import VM
from vmfork.cli.found import find, id_argument
from vmfork.cli.loop import run_async
from vmfork.cli.options import json_option
from vmfork.cli.show import show_json
from vmfork.config import find_places
from vmfork.errors import ConfigError
from vmfork.host.folders import find_content
from vmfork.host.wait import write_all
from vmfork.hypervisor.qemu import CONSOLE
from vmfork.machine.background import read_status
from vmfork.machine.folder import folder_of
from vmfork.machine.kept import choose_program, find_command, list_programs, read_output
from vmfork.wire.frame import Channel

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.machine.kept import KeptProgram


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until its end.")
@click.option("--console", is_flag=True, help="The console, also of a machine that was started with a command.")
@click.option("--pid", type=int, metavar="N", help="This program in the background.")
@id_argument
@json_option
def command(follow: bool, console: bool, pid: int | None, vm_id: str, as_json: bool) -> None:
    """Print what machine ID wrote: the command that it was started with, else its console.

    At least the last 64 KiB are kept, also of a machine that ended not long ago.
    """
    if console and pid is not None:
        raise ConfigError("pid", pid, "the console is no program", hint="leave out one of the two")
    record, end = find(vm_id)
    folder = folder_of(find_places().vms, record.id)
    program = None if console else _find_program(folder, pid)
    if as_json:
        if follow:
            raise ConfigError("follow", True, "one document has an end", hint="leave out --json")
        show_json({"id": record.id} | (_tell_console(folder) if program is None else _tell_program(folder, program)))
    elif follow and end is None:
        run_async(_follow(record.id, program))
    else:
        run_async(_print(folder, program))


def _find_program(folder: Path, pid: int | None) -> KeptProgram | None:
    """The program that is meant; `None` for the console, where no command was started with the machine."""
    return find_command(folder) if pid is None else choose_program(list_programs(folder), pid)


async def _print(folder: Path, program: KeptProgram | None) -> None:
    if program is None:
        await write_all(1, find_content(folder / CONSOLE) or b"")
        return
    stdout, stderr = read_output(folder, program)
    await write_all(1, stdout)
    await write_all(2, stderr)


async def _follow(vm_id: str, program: KeptProgram | None) -> None:
    """All that is kept and all that comes was passed on. It ends with the program, or the machine."""
    async with VM.connect(vm_id) as vm:
        if program is None:
            async for data in vm.follow_console():
                await write_all(1, data)
            return
        process = await vm.program(program.pid)
        async for channel, data in process.output():
            await write_all(1 if channel is Channel.STDOUT else 2, data)


def _tell_console(folder: Path) -> dict[str, object]:
    return {"console": (find_content(folder / CONSOLE) or b"").decode(errors="replace")}


def _tell_program(folder: Path, program: KeptProgram) -> dict[str, object]:
    stdout, stderr = read_output(folder, program)
    status = read_status(folder, program)
    return {
        "pid": program.pid,
        "argv": program.argv,
        "exit_code": None if status is None else status.exit_code,
        "stdout": stdout.decode(errors="replace"),
        "stderr": stderr.decode(errors="replace"),
    }
