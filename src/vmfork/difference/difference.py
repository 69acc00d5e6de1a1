"""What differs between two machines that run, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.difference.files import compare_files
from vmfork.difference.memory import compare_memory
from vmfork.difference.processes import compare_processes
from vmfork.errors import GuestError

if TYPE_CHECKING:
    from vmfork.difference.files import FileDifference
    from vmfork.difference.memory import MemoryDifference
    from vmfork.difference.processes import ProcessDifference
    from vmfork.machine.running import Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs between two machines, the first `ours`.

    Of files and processes there are the first; `more_files` and `more_processes` count the others.
    """

    files: tuple[FileDifference, ...]
    processes: tuple[ProcessDifference, ...]
    memory: MemoryDifference
    more_files: int = 0
    more_processes: int = 0


async def compare(ours: Running, theirs: Running, *, most: int) -> Difference:
    """The difference, at most `most` files and processes of it. Nothing of it is at one moment: both run on.

    Memory comes first and processes next: what is done for the files is in neither. Raises `Closed`, `MachineEnded`,
    `GuestError` when a machine stands still, and what the agent raises.
    """
    for running in (ours, theirs):
        running.check_open()
        if running.stands_still:
            raise GuestError(f"VM {running.id} is paused", hint="resume it first")
    memory = await compare_memory(ours, theirs)
    processes = await compare_processes(ours, theirs)
    files = await compare_files(ours, theirs)
    return Difference(
        files=tuple(files[:most]),
        processes=tuple(processes[:most]),
        memory=memory,
        more_files=max(0, len(files) - most),
        more_processes=max(0, len(processes) - most),
    )
