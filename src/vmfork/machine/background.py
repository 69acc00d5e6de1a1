"""Programs that a machine's broker keeps: started, found again, and how they ended (`machine/kept.py`)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.agent.background import BackgroundProcess
from vmfork.agent.programs import name_of
from vmfork.errors import ConfigError, ProtocolError
from vmfork.host.folders import find_content, write_whole
from vmfork.machine.kept import FOLDER, MOST_KEPT, claim_program, list_programs
from vmfork.records import write_record
from vmfork.wire.message import parse_exec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.agent.process import GuestProcess
    from vmfork.machine.kept import KeptProgram
    from vmfork.machine.running import Running
    from vmfork.wire.command import Command
    from vmfork.wire.message import ExecStatus, LeftProgram


async def start_background(running: Running, command: Command, *, timeout_s: float) -> BackgroundProcess:
    """The program runs, and goes on when we leave. Raises `ExecError` when it cannot be started; then none runs."""
    _check(running, command)
    folder = running.folder.path / FOLDER
    program = claim_program(folder, command.argv)
    path = folder / f"{program.number}.json"
    try:
        pid = await running.agent.start_background(program.number, command, timeout_s=timeout_s)
        program = replace(program, pid=pid)
        write_whole(path, write_record(program))
    except BaseException as error:
        if isinstance(error, OSError):  # it runs, and nobody would find it
            running.agent.kill_kept_nowait(program.number)
        path.unlink(missing_ok=True)
        raise
    return find_process(running, program)


async def keep_left(running: Running, left: Sequence[LeftProgram]) -> None:
    """The programs that were left in the guest are in the background, as far as there is room for them."""
    folder = running.folder.path / FOLDER
    for each in left[:MOST_KEPT]:
        program = claim_program(folder, each.argv)
        path = folder / f"{program.number}.json"
        try:
            await running.agent.keep_left(program.number, each)
            write_whole(path, write_record(replace(program, pid=each.pid)))
        except BaseException:
            path.unlink(missing_ok=True)
            raise


async def find_programs(running: Running) -> Sequence[GuestProcess]:
    """Those that a broker keeps; of a machine that is ours alone, those that its parent's clients left in it."""
    running.check_open()
    if running.is_shared:
        found = await asyncio.to_thread(list_programs, running.folder.path)
        return [find_process(running, program) for program in found]
    make = running.facts.make
    # A machine that is no live fork has none, and need not be asked.
    if not running.parent or make is None or not make.keeps_programs:
        return ()
    return await running.left.take_all(running.agent)


def find_process(running: Running, program: KeptProgram) -> BackgroundProcess:
    """The program, to be read, signalled and waited for."""
    return BackgroundProcess(running.agent, program.number, name=name_of(program.argv), pid=program.pid)


def read_status(folder: Path, program: KeptProgram) -> ExecStatus | None:
    """How the program ended; `None` while it runs, or where its machine ended first."""
    data = find_content(folder / FOLDER / f"{program.number}.end")
    try:
        return parse_exec(data) if data else None
    except ProtocolError:
        return None


def _check(running: Running, command: Command) -> None:
    running.check_open()
    if not running.is_shared:
        reason = "only a machine that stands alone keeps programs in the background"
        raise ConfigError("background", True, reason, hint="start it with Template.start")
    if command.stdin or command.window is not None:
        raise ConfigError("background", True, "such a program has neither standard input nor a terminal")
