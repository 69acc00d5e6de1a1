"""What machines take of the host now, what they share, and what goes through them."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, replace
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

# The fields of `Stats` that tell of memory.
MEMORY = ("own_bytes", "shared_bytes", "siblings_bytes", "layer_bytes")
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
    alone. `shared_bytes`: what it reads from its template's memory, and of the pages that it shares with its siblings,
    other forks of one running machine; `siblings_bytes` are the latter. `layer_bytes`: all of those pages, read or not,
    which come back with the last sibling. `programs` that vmfork runs in it, those in the background too. `sent_bytes`
    to its guest and `received_bytes` from it, files and output of programs: since this process has it, or, where it
    stands alone, since it does.
    """

    cpu_s: float
    own_bytes: int
    shared_bytes: int
    siblings_bytes: int
    layer_bytes: int
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
        raise MachineEnded(running.machine.exit_code, hint="take another machine") from error
    return Stats(
        cpu_s=cpu_s,
        **tell_memory(running.facts, memory),
        sent_bytes=sent,
        received_bytes=received,
        programs=programs,
    )


def tell_memory(facts: MachineFacts, memory: MemoryUse) -> dict[str, int]:
    """What `Stats` tells of a machine's memory, by the same names."""
    sizes = memory.private, memory.guest_shared, memory.guest_siblings, facts.layer_bytes
    return dict(zip(MEMORY, sizes, strict=True))


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
        facts, memory = use.record.facts, use.memory
        for inode, size in ((facts.ram_inode, memory.guest_base), (_layer_inode(facts), memory.guest_siblings)):
            most[inode] = max(most.get(inode, 0), size)
    return sum(size for inode, size in most.items() if inode)


def layer_bytes(uses: Sequence[Use]) -> int:
    """What the files hold that running machines were copied into, each counted once."""
    return sum({_layer_inode(use.record.facts): use.record.facts.layer_bytes for use in uses}.values())


def _layer_inode(facts: MachineFacts) -> int:
    """That of the file which siblings share, 0 where there is none. Of a booted machine it is the only one."""
    return (facts.upper_inode or facts.ram_inode) if facts.layer_bytes else 0


def measure_memory(facts: MachineFacts, pid: int) -> MemoryUse:
    """What the machine costs the host. Raises `OSError` when the process is gone."""
    hardware = facts.hardware
    use = read_memory(
        pid,
        ram_inode=facts.ram_inode,
        upper_inode=facts.upper_inode,
        ram_bytes=hardware.base_memory_mib * MIB,
        added_bytes=[size * MIB for size in hardware.added_mib],
    )
    is_alone = _layer_inode(facts) == facts.ram_inode != 0
    return replace(use, guest_siblings=use.guest_shared) if is_alone else use


def _measure(facts: MachineFacts, pid: int) -> tuple[float, MemoryUse]:
    """Seconds of CPU, and memory. Raises `OSError` when the process is gone."""
    fields = read_stat(pid)
    if len(fields) <= _STIME:
        raise ProcessLookupError(pid)
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_S, measure_memory(facts, pid)
