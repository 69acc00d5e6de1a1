"""The processes of two guests: those that one has alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import GuestFileError

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.machine.running import Running

_MOST_ARGUMENTS = 4096
_MOST_STAT = 4096
# Of /proc/PID/stat, behind the name in parentheses: parent, and when it was started, in ticks since boot (proc(5)).
_PARENT, _STARTED = 1, 19
# The parent of all threads of the kernel.
_KERNEL = "2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessDifference:
    """A process that one guest has alone: the first where it `is_ours`. `argv` is cut at 4,096 bytes."""

    pid: int
    argv: tuple[str, ...]
    is_ours: bool


_Process = tuple[int, str, tuple[str, ...]]


async def compare_processes(ours: Running, theirs: Running) -> list[ProcessDifference]:
    """Those that one of both has alone, by pid. One that went on in a fork is the same: pid, start and arguments."""
    mine, other = await asyncio.gather(_list_processes(ours.agent), _list_processes(theirs.agent))
    found = [(process, True) for process in mine - other] + [(process, False) for process in other - mine]
    return [ProcessDifference(pid=pid, argv=argv, is_ours=is_ours) for (pid, _, argv), is_ours in sorted(found)]


async def _list_processes(agent: AgentClient) -> frozenset[_Process]:
    pids = [entry.name for entry in await agent.list_dir("/proc") if entry.name.isdecimal()]
    found = await asyncio.gather(*(_read_process(agent, pid) for pid in pids))
    return frozenset(process for process in found if process is not None)


async def _read_process(agent: AgentClient, pid: str) -> _Process | None:
    """`None` for a thread of the kernel, and for one that has ended."""
    try:
        stat = await agent.read_file(f"/proc/{pid}/stat", length=_MOST_STAT)
        fields = stat.rpartition(b")")[2].split()
        if len(fields) <= _STARTED or fields[_PARENT].decode() == _KERNEL or pid == _KERNEL:
            return None
        line = await agent.read_file(f"/proc/{pid}/cmdline", length=_MOST_ARGUMENTS)
    except GuestFileError:
        return None
    argv = tuple(part.decode(errors="surrogateescape") for part in line.split(b"\0") if part)
    return int(pid), fields[_STARTED].decode(), argv
