"""Programs that a machine's broker keeps: started, found again, and how they ended (`machine/kept.py`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.agent.background import BackgroundProcess
from vmfork.agent.programs import name_of
from vmfork.errors import ConfigError, ProtocolError
from vmfork.host.folders import find_content, write_whole
from vmfork.machine.kept import FOLDER, claim_program
from vmfork.records import write_record
from vmfork.wire.message import parse_exec

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.machine.kept import KeptProgram
    from vmfork.machine.running import Running
    from vmfork.wire.command import Command
    from vmfork.wire.message import ExecStatus


async def start_background(running: Running, command: Command, *, timeout_s: float) -> BackgroundProcess:
    """The program runs, and goes on when we leave. Raises `ExecError` when it cannot be started; then none runs."""
    _check(running, command)
    folder = running.folder.path / FOLDER
    program = claim_program(folder, command)
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
