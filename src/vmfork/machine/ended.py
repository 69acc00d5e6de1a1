"""What is still known of machines that stood alone and have ended.

```
RUNTIME/ended/ID/        what the machine's folder was
    vm.json              the record
    ended.json           when and why its broker ended it; missing where the broker was killed
    console.log qemu.log
```
The last 64 are kept, for a day.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.host.folders import find_content, list_ours, make_private
from vmfork.records import read_record

if TYPE_CHECKING:
    import re
    from pathlib import Path

FOLDER = "ended"
KEPT_COUNT, KEPT_S = 64, 24 * 3600.0
_NOTE = "ended.json"
_UNTOLD = "its broker was killed"


@dataclass(frozen=True, slots=True)
class End:
    """Why a machine ended, and when: seconds since 1970."""

    reason: str
    at: float


def read_end(folder: Path) -> End:
    """What the machine's broker wrote; where it was killed, when its folder last changed."""
    return _find_note(folder) or End(_UNTOLD, folder.stat().st_mtime)


def read_reason(folder: Path) -> str:
    """Why the machine's broker ended it; empty where it said nothing."""
    note = _find_note(folder)
    return "" if note is None else note.reason


def _find_note(folder: Path) -> End | None:
    with suppress(OSError, ValueError):
        if (data := find_content(folder / _NOTE)) is not None:
            return read_record(End, data)
    return None


def bury(folder: Path, *, name: re.Pattern[str], marker: str) -> None:
    """What is known of the machine in `folder` is kept, and what is known of older ones no longer."""
    graves = make_private(folder.parent.with_name(FOLDER))
    folder.rename(graves / folder.name)
    for socket in (graves / folder.name).glob("*.sock"):
        socket.unlink(missing_ok=True)
    kept = list_ended(folder.parent, name=name, marker=marker)
    for old in [path for path in kept if time.time() - read_end(path).at > KEPT_S] + kept[:-KEPT_COUNT]:
        shutil.rmtree(old, ignore_errors=True)


def list_ended(vms: Path, *, name: re.Pattern[str], marker: str) -> list[Path]:
    """The folders of the ended machines of `vms`, in the order of their ends."""
    return sorted(list_ours(vms.with_name(FOLDER), name, marker=marker), key=lambda path: read_end(path).at)
