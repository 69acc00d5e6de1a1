"""What machines take of the host now, what they share, and what goes through them."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import GuestError, MachineEnded
from vmfork.host.memory import MemoryUse, read_memory
from vmfork.host.process import read_stat
from vmfork.machine.folder import list_records
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmfork.machine.facts import MachineFacts
    from vmfork.machine.folder import VMRecord
    from vmfork.machine.running import Running

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Of /proc/PID/stat, from its third field on: utime and stime (proc(5)).
_UTIME, _STIME = 11, 12


@dataclass(frozen=True, slots=True)
class Use:
    """What one machine takes: seconds of CPU since its start, and memory."""

    record: VMRecord
    cpu_s: float
    memory: MemoryUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a machine takes of the host now, and what went through it.

    `cpu_s`: seconds of the host's CPUs since it was started. `own_bytes`: memory that would come back if it ended
    alone. `shared_bytes`: what it reads from its template's memory. `programs` that vmfork runs in it, those in the
    background too. `sent_bytes` to its guest and `received_bytes` from it, files and output of programs: since this
    process has it, or, where it stands alone, since it does.
    """

    cpu_s: float
    own_bytes: int
    shared_bytes: int
    sent_bytes: int
    received_bytes: int
    programs: int


async def read_stats(running: Running) -> Stats:
    """What it takes, and what went through it. Raises `MachineEnded`."""
    agent = running.agent
    if agent.lost is not None:
        raise agent.lost.with_traceback(None)
    if running.is_shared:
        counts = await agent.count()
        if "programs" not in counts:
            raise GuestError("the machine's broker is of an older vmfork, and does not count", hint="start another")
        sent, received, programs = counts["sent"], counts["received"], counts["programs"]
    else:
        (sent, received), programs = agent.traffic, agent.count_programs()
    try:
        if running.machine.has_ended:
            raise ProcessLookupError  # it is no process any more, or another
        cpu_s, memory = await asyncio.to_thread(_measure, running.facts, running.machine.identity.pid)
    except OSError as error:
        raise MachineEnded(running.machine.exit_code) from error
    return Stats(
        cpu_s=cpu_s,
        own_bytes=memory.private,
        shared_bytes=memory.guest_shared,
        sent_bytes=sent,
        received_bytes=received,
        programs=programs,
    )


def read_use(record: VMRecord) -> Use:
    """That of the machine. Raises `OSError` when it has ended."""
    return Use(record, *_measure(record.facts, record.pid))


def read_uses(vms: Path) -> list[Use]:
    """That of each machine that runs, oldest first. One that ends meanwhile is left out."""
    found = []
    for record in list_records(vms):
        with suppress(OSError):
            found.append(read_use(record))
    return found


def shared_bytes(uses: Sequence[Use]) -> int:
    """The guest memory that several read from one file, counted once for each file: that of who reads most of it."""
    most: dict[int, int] = {}
    for use in uses:
        inode = use.record.facts.ram_inode
        most[inode] = max(most.get(inode, 0), use.memory.guest_shared)
    return sum(size for inode, size in most.items() if inode)


def measure_memory(facts: MachineFacts, pid: int) -> MemoryUse:
    """What the machine costs the host. Raises `OSError` when the process is gone."""
    hardware = facts.hardware
    return read_memory(
        pid,
        ram_inode=facts.ram_inode,
        upper_inode=facts.upper_inode,
        ram_bytes=hardware.base_memory_mib * MIB,
        added_bytes=[size * MIB for size in hardware.added_mib],
    )


def _measure(facts: MachineFacts, pid: int) -> tuple[float, MemoryUse]:
    """Seconds of CPU, and memory. Raises `OSError` when the process is gone."""
    fields = read_stat(pid)
    if len(fields) <= _STIME:
        raise ProcessLookupError(pid)
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S, measure_memory(facts, pid)
