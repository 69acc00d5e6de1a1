"""The programs that a machine's broker keeps, as its folder tells of them.

```
VMS/ID/programs/N.json    what was started, and when; its starter wrote it
                N.out N.err N.end    what it wrote, and how it ended; the broker's (broker/README.md)
                command   the N of the command that the machine was started with, where it was
```
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from vmfork.errors import GuestError
from vmfork.hint import Hint
from vmfork.host.folders import find_content, list_folder, write_whole
from vmfork.records import find_value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FOLDER = "programs"
MOST_KEPT = 64  # by a broker
_COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptProgram:
    """A program in the background. `started_at` is seconds since 1970; `pid` is 0 until it runs."""

    number: int
    argv: tuple[str, ...]
    started_at: float
    pid: int = 0


def claim_program(folder: Path, argv: Sequence[str]) -> KeptProgram:
    """A number that nobody else has, higher than those before it."""
    number = max((int(path.stem) for path in list_folder(folder) if path.stem.isdigit()), default=0)
    while True:
        number += 1
        with suppress(FileExistsError):
            os.close(os.open(folder / f"{number}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return KeptProgram(number=number, argv=tuple(argv), started_at=time.time())


def list_programs(folder: Path) -> list[KeptProgram]:
    """What is kept in the machine's folder of programs in the background, in the order in which they were started."""
    found = []
    for path in list_folder(folder / FOLDER):
        with suppress(OSError):
            found.append(find_value(KeptProgram, find_content(path)) if path.suffix == ".json" else None)
    return sorted((each for each in found if each is not None and each.pid), key=lambda each: each.number)


def note_command(folder: Path, pid: int) -> None:
    """The program that has this process id is the command that the machine was started with."""
    number = choose_program(list_programs(folder), pid).number
    write_whole(folder / FOLDER / _COMMAND, str(number).encode())


def find_command(folder: Path) -> KeptProgram | None:
    """The command that the machine was started with; `None` where there was none."""
    number = find_content(folder / FOLDER / _COMMAND)
    return next((each for each in list_programs(folder) if str(each.number).encode() == number), None)


class _HasPid(Protocol):
    @property
    def pid(self) -> int: ...


_Program = TypeVar("_Program", bound=_HasPid)


def choose_program(programs: Sequence[_Program], pid: int) -> _Program:
    """The one with this process id; of several that had it one after the other, the last. Raises `GuestError`."""
    for program in reversed(programs):
        if program.pid == pid:
            return program
    hint = Hint("see vm.programs()", command="vmfork show lists them")
    raise GuestError(f"no program in the background has the process id {pid}", hint=hint)


def read_output(folder: Path, program: KeptProgram) -> tuple[bytes, bytes]:
    """The end of what the program wrote to standard output and standard error."""
    kept = (find_content(folder / FOLDER / f"{program.number}.{kind}") for kind in ("out", "err"))
    stdout, stderr = (data or b"" for data in kept)
    return stdout, stderr
