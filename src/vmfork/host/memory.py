"""How much memory a process really costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of memory, as the kernel counts them in /proc/PID/smaps (proc(5)).

    `rss` is all that is resident; `pss` divides each shared page by the number of its users; `private` is what would
    come back if the process ended alone. `guest_rss` and `guest_private` are the same for guest RAM only.
    """

    rss: int
    pss: int
    private: int
    guest_rss: int = 0
    guest_private: int = 0

    @property
    def guest_shared(self) -> int:
        """Bytes of guest RAM that are read from the template's pages."""
        return self.guest_rss - self.guest_private


def read_memory(pid: int, *, ram_inode: int = 0, ram_bytes: int = 0, added_bytes: Collection[int] = ()) -> MemoryUse:
    """What process `pid` uses now. `OSError` if it is gone.

    Guest RAM are the mappings of the file `ram_inode`, or, where there is none, the anonymous one of `ram_bytes` bytes;
    and the anonymous ones of a size in `added_bytes`.
    """
    totals = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty", "Anonymous"), 0)
    guest = dict(totals)
    in_guest = False
    with Path(f"/proc/{pid}/smaps").open() as smaps:
        for line in smaps:
            key, _, rest = line.partition(":")
            if key in totals:
                amount = int(rest.split()[0]) * 1024
                totals[key] += amount
                if in_guest:
                    guest[key] += amount
            elif "-" in (span := line.partition(" ")[0]):
                inode = int(line.split()[4])
                start, end = (int(part, 16) for part in span.split("-"))
                size = end - start
                in_guest = inode == ram_inode if ram_inode else inode == 0 and size == ram_bytes
                in_guest = in_guest or (inode == 0 and size in added_bytes)
    return MemoryUse(
        totals["Rss"],
        totals["Pss"],
        totals["Private_Clean"] + totals["Private_Dirty"],
        guest["Rss"],
        # A page of the file counts as private while one process alone maps it: what was copied is anonymous.
        guest["Anonymous"],
    )
