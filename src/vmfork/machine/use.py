"""What machines take of the host now, and what they share."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.host.memory import MemoryUse, read_memory
from vmfork.host.process import read_stat
from vmfork.machine.folder import list_records
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.machine.folder import VMRecord

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Of /proc/PID/stat, from its third field on: utime and stime (proc(5)).
_UTIME, _STIME = 11, 12


@dataclass(frozen=True, slots=True)
class Use:
    """What one machine takes: seconds of CPU since its start, and memory."""

    record: VMRecord
    cpu_s: float
    memory: MemoryUse


def read_uses(vms: Path) -> list[Use]:
    """That of each machine that runs, oldest first. One that ends meanwhile is left out."""
    found = []
    for record in list_records(vms):
        with suppress(OSError, IndexError):
            found.append(_read(record))
    return found


def shared_bytes(uses: Sequence[Use]) -> int:
    """The guest memory that several read from one file, counted once for each file: that of who reads most of it."""
    most: dict[int, int] = {}
    for use in uses:
        inode = use.record.facts.ram_inode
        most[inode] = max(most.get(inode, 0), use.memory.guest_shared)
    return sum(size for inode, size in most.items() if inode)


def _read(record: VMRecord) -> Use:
    hardware, fields = record.facts.hardware, read_stat(record.pid)
    memory = read_memory(
        record.pid,
        ram_inode=record.facts.ram_inode,
        ram_bytes=hardware.base_memory_mib * MIB,
        added_bytes=[size * MIB for size in hardware.added_mib],
    )
    return Use(record, (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S, memory)
