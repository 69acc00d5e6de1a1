"""The programs that a machine's broker keeps, as its folder tells of them.

```
VMS/ID/programs/N.json    what was started, and when; its starter wrote it
                N.out N.err N.end    what it wrote, and how it ended; the broker's (broker/README.md)
```
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.agent.background import BackgroundProcess
from vmfork.agent.programs import name_of
from vmfork.errors import ConfigError, GuestError, ProtocolError
from vmfork.hint import Hint
from vmfork.host.folders import find_content, list_folder, write_whole
from vmfork.records import find_value, write_record
from vmfork.wire.message import parse_exec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.machine.running import Running
    from vmfork.wire.command import Command
    from vmfork.wire.message import ExecStatus

_FOLDER = "programs"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptProgram:
    """A program in the background. `started_at` is seconds since 1970; `pid` is 0 until it runs."""

    number: int
    argv: tuple[str, ...]
    started_at: float
    pid: int = 0


async def start_background(running: Running, command: Command, *, timeout_s: float) -> BackgroundProcess:
    """The program runs, and goes on when we leave. Raises `ExecError` when it cannot be started; then none runs."""
    _check(running, command)
    folder = running.folder.path / _FOLDER
    program = _claim(folder, command)
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


def list_programs(folder: Path) -> list[KeptProgram]:
    """What is kept in the machine's folder of programs in the background, in the order in which they were started."""
    found = []
    for path in list_folder(folder / _FOLDER):
        with suppress(OSError):
            found.append(find_value(KeptProgram, find_content(path)) if path.suffix == ".json" else None)
    return sorted((each for each in found if each is not None and each.pid), key=lambda each: each.number)


def choose_program(programs: Sequence[KeptProgram], pid: int) -> KeptProgram:
    """The one with this process id; of several that had it one after the other, the last. Raises `GuestError`."""
    for program in reversed(programs):
        if program.pid == pid:
            return program
    hint = Hint("see vm.programs()", command="vmfork show lists them")
    raise GuestError(f"no program in the background has the process id {pid}", hint=hint)


def read_output(folder: Path, program: KeptProgram) -> tuple[bytes, bytes]:
    """The end of what the program wrote to standard output and standard error."""
    kept = (find_content(folder / _FOLDER / f"{program.number}.{kind}") for kind in ("out", "err"))
    stdout, stderr = (data or b"" for data in kept)
    return stdout, stderr


def read_status(folder: Path, program: KeptProgram) -> ExecStatus | None:
    """How the program ended; `None` while it runs, or where its machine ended first."""
    data = find_content(folder / _FOLDER / f"{program.number}.end")
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


def _claim(folder: Path, command: Command) -> KeptProgram:
    """A number that nobody else has, higher than those before it."""
    number = max((int(path.stem) for path in list_folder(folder) if path.stem.isdigit()), default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            os.close(os.open(folder / f"{number}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return KeptProgram(number=number, argv=tuple(command.argv), started_at=time.time())
