"""How much memory a process really costs."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.host.procfs import read_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

_COUNTED = frozenset({"Rss", "Pss", "Private_Clean", "Private_Dirty", "Anonymous"})


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of memory, as the kernel counts them in /proc/PID/smaps (proc(5)).

    `rss` is all that is resident; `pss` divides each shared page by the number of its users; `private` is what would
    come back if the process ended alone. `guest_rss` and `guest_private` are the same for guest RAM only.
    `guest_siblings`: what it reads of the pages that a running machine had for itself when it was copied. The other
    forks of that moment share them.
    """

    rss: int
    pss: int
    private: int
    guest_rss: int = 0
    guest_private: int = 0
    guest_siblings: int = 0

    @property
    def guest_shared(self) -> int:
        """Bytes of guest RAM that are read from files: the template's pages, and those that it shares with siblings."""
        return self.guest_rss - self.guest_private

    @property
    def guest_base(self) -> int:
        """Bytes of guest RAM that are read from the template's pages."""
        return self.guest_shared - self.guest_siblings


def read_memory(
    pid: int, *, ram_inode: int = 0, upper_inode: int = 0, ram_bytes: int = 0, added_bytes: Sequence[int] = ()
) -> MemoryUse:
    """What process `pid` uses now. Raises `OSError` when it is gone.

    Guest RAM is what maps the file `ram_inode`, as far as `ram_bytes` where that is given, and the file `upper_inode`
    that lies over it. Without a file it is the anonymous mapping of `ram_bytes` bytes. Anonymous mappings of a size in
    `added_bytes` belong to it too, and so do the first of these pieces where they lie in the file, behind the rest.
    """
    totals, anonymous, base, upper = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    # By device: files of two file systems may have one number. What stat(2) calls the device is no help, since a btrfs
    # or an overlay shows another in smaps. How far the file is mapped tells them apart.
    of_files: dict[str, _Mapped] = defaultdict(_Mapped)
    counted: list[Counter[str]] = [totals]
    with Path(f"/proc/{pid}/smaps").open() as smaps:
        for line in smaps:
            key, _, rest = line.partition(":")
            if key in _COUNTED:
                amount = int(rest.split()[0]) * 1024
                for counter in counted:
                    counter[key] += amount
            elif "-" in (span := line.partition(" ")[0]):
                _, _, offset, device, inode = line.split()[:5]
                start, end = (int(part, 16) for part in span.split("-"))
                size = end - start
                counted = [totals]
                if upper_inode and int(inode) in (ram_inode, upper_inode):
                    # The end of the lower one may be covered: how far it is mapped tells nothing then.
                    counted.append(upper if int(inode) == upper_inode else base)
                elif ram_inode and int(inode) == ram_inode:
                    of_files[device].reach(int(offset, 16) + size)
                    counted.append(of_files[device].use)
                elif inode == "0" and (size in added_bytes or (not ram_inode and size == ram_bytes)):
                    counted.append(anonymous)
    ends = set(accumulate(added_bytes, initial=ram_bytes))
    guest = sum((m.use for m in of_files.values() if not ram_bytes or m.end in ends), start=anonymous + base + upper)
    return MemoryUse(
        totals["Rss"],
        totals["Pss"],
        totals["Private_Clean"] + totals["Private_Dirty"],
        guest["Rss"],
        # A page of the file counts as private while one process alone maps it: what was copied is anonymous.
        guest["Anonymous"],
        upper["Rss"] - upper["Anonymous"],
    )


def read_resident(pid: int) -> int:
    """Bytes of memory that process `pid` has touched and that are in RAM (proc(5), statm); 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def read_private(pid: int) -> int:
    """Bytes of memory that process `pid` has for itself, no file's and not shared (proc(5), statm); 0 if it is gone.

    Of a fork this is what its guest has written, and what the emulator holds.
    """
    try:
        _, resident, shared, *_ = read_whole(f"/proc/{pid}/statm").split()
    except ValueError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


class _Mapped:
    """What the mappings of one file use, and where in the file the last of them ends."""

    def __init__(self) -> None:
        self.use = Counter[str]()
        self.end = 0

    def reach(self, end: int) -> None:
        self.end = max(self.end, end)
