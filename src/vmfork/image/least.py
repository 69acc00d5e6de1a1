"""What a host measured of an image: the least memory its guest needs. Kept in the image's folder, outside its digest.

It is a fact of the host as much as of the image, so it is in no record, and is measured anew where it is missing,
damaged, or of another format.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmfork.host.folders import write_whole

if TYPE_CHECKING:
    from pathlib import Path

NAME = "least-memory.json"
FORMAT = 1


def read_least(folder: Path) -> int | None:
    """MiB of RAM; `None` where nothing was measured."""
    try:
        found = json.loads((folder / NAME).read_bytes())
        least = found["min_memory_mib"] if found["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return least if isinstance(least, int) and least > 0 else None


def write_least(folder: Path, min_memory_mib: int, *, measured: str) -> None:
    """`read_least` gives that number. `measured` says how it was found, for a reader of the file.

    Raises `OSError` when the folder cannot be written.
    """
    record = {"format": FORMAT, "min_memory_mib": min_memory_mib, "measured": measured}
    write_whole(folder / NAME, (json.dumps(record) + "\n").encode())
