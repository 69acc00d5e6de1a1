"""What is still known of machines that stood alone and have ended.

```
RUNTIME/ended/ID/        what the machine's folder was
    vm.json              the record
    ended.json           when and why its broker ended it; missing where the broker was killed
    console.log qemu.log
```
The last 64 are told of, for a day. The next command that lists them removes the others, as does the next end of one;
where all of them together have more than 64 MiB, the oldest go before their time.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.host.folders import find_content, list_ours, make_private, write_whole
from vmfork.records import find_value, write_record
from vmfork.units import MIB

if TYPE_CHECKING:
    import re
    from pathlib import Path

FOLDER = "ended"
KEPT_COUNT, KEPT_S, KEPT_BYTES = 64, 24 * 3600.0, 64 * MIB
_NOTE = "ended.json"
_UNTOLD = "its broker was killed"
# As a broker says it (broker/serve.c).
STOPPED = "it was stopped"


@dataclass(frozen=True, slots=True)
class End:
    """Why a machine ended, and when: seconds since 1970."""

    reason: str
    at: float


def _read_end(folder: Path) -> End:
    """What the machine's broker wrote; where it was killed, when its folder last changed."""
    if (note := _find_note(folder)) is not None:
        return note
    with suppress(OSError):
        return End(_UNTOLD, folder.stat().st_mtime)
    return End(_UNTOLD, 0.0)  # forgotten just now, by another process


def write_end(folder: Path, end: End) -> None:
    """The machine of `folder` ended so, whatever was written of it before."""
    write_whole(folder / _NOTE, write_record(end))


def forget_end(folder: Path) -> None:
    """The machine of `folder` lives."""
    (folder / _NOTE).unlink(missing_ok=True)


def read_reason(folder: Path) -> str:
    """Why the machine's broker ended it; empty where it said nothing."""
    note = _find_note(folder)
    return "" if note is None else note.reason


def _find_note(folder: Path) -> End | None:
    with suppress(OSError):
        return find_value(End, find_content(folder / _NOTE))
    return None


def bury(folder: Path, *, name: re.Pattern[str], marker: str) -> None:
    """What is known of the machine in `folder` is kept, and what is known of older ones no longer."""
    graves = make_private(folder.parent.with_name(FOLDER))
    folder.rename(graves / folder.name)
    for socket in (graves / folder.name).glob("*.sock"):
        socket.unlink(missing_ok=True)
    forget_old(folder.parent, name=name, marker=marker)


def forget_old(vms: Path, *, name: re.Pattern[str], marker: str) -> None:
    """Nothing is kept of machines beyond what the drawing above says."""
    kept_bytes = 0
    for count, (path, end) in enumerate(_look(vms, name=name, marker=marker)):
        kept_bytes += _size(path)
        # The last one to end is told of, whatever it wrote.
        if _is_over(end) or count >= KEPT_COUNT or (count and kept_bytes > KEPT_BYTES):
            shutil.rmtree(path, ignore_errors=True)


def list_ended(vms: Path, *, name: re.Pattern[str], marker: str) -> list[tuple[Path, End]]:
    """The folders of the ended machines of `vms` that are told of, and their ends, in the order of these."""
    found = _look(vms, name=name, marker=marker)[:KEPT_COUNT]
    return [(path, end) for path, end in reversed(found) if not _is_over(end)]


def _look(vms: Path, *, name: re.Pattern[str], marker: str) -> list[tuple[Path, End]]:
    """All that is there, the last to end first."""
    found = [(path, _read_end(path)) for path in list_ours(vms.with_name(FOLDER), name, marker=marker)]
    return sorted(found, key=lambda each: each[1].at, reverse=True)


def _is_over(end: End) -> bool:
    return time.time() - end.at > KEPT_S


def _size(folder: Path) -> int:
    """Bytes in the files below; what goes meanwhile counts nothing."""
    size = 0
    for parent, _, names in os.walk(folder):
        for each in names:
            with suppress(OSError):
                size += os.lstat(f"{parent}/{each}").st_size
    return size
