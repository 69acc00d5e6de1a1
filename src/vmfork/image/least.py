"""What a host measured of an image: the least memory its guest needs. Kept in the image's folder, outside its digest.

It is a fact of the host as much as of the image, so the image's record does not hold it. It is measured again when it
is missing, damaged, or of another format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.host.folders import write_whole
from vmfork.records import VERSION, read_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

NAME = "least-memory.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastMemory:
    """MiB of RAM; `measured` says how it was found, for a reader of the file."""

    min_memory_mib: int
    measured: str
    format: int = field(default=1, metadata=VERSION)

    def __post_init__(self) -> None:
        if self.min_memory_mib <= 0:
            raise ValueError(f"min_memory_mib is {self.min_memory_mib}")


def read_least(folder: Path) -> int | None:
    """MiB of RAM; `None` where nothing was measured."""
    try:
        return read_record(LeastMemory, (folder / NAME).read_bytes()).min_memory_mib
    except (OSError, ValueError):
        return None


def write_least(folder: Path, min_memory_mib: int, *, measured: str) -> None:
    """`read_least` gives that number. Raises `OSError` when the folder cannot be written."""
    write_whole(folder / NAME, write_record(LeastMemory(min_memory_mib=min_memory_mib, measured=measured)) + b"\n")
