"""What there is of processes, descriptors, mounts and machines, seen from outside: what a test could leave behind."""

from __future__ import annotations

import os
import signal
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.rules.orphans import Orphans
from vmfork.portal import portal

if TYPE_CHECKING:
    from collections.abc import Collection

# Data files that libraries open once, such as matplotlib's fonts.
_LIBRARIES = sysconfig.get_path("purelib")
_ORPHANS = Orphans()


@dataclass(frozen=True, slots=True)
class Traces:
    """What can be left, each by a name that says enough to find it."""

    descriptors: frozenset[str]
    processes: frozenset[int]
    mounts: frozenset[str]
    machines: frozenset[str]

    def __sub__(self, before: Traces) -> Traces:
        return Traces(
            self.descriptors - before.descriptors,
            self.processes - before.processes,
            self.mounts - before.mounts,
            self.machines - before.machines,
        )

    def __bool__(self) -> bool:
        return bool(self.descriptors or self.processes or self.mounts or self.machines)

    def __str__(self) -> str:
        lines = [f"descriptor {text}" for text in sorted(self.descriptors)]
        lines += [f"process {pid}: {command_of(pid)}" for pid in sorted(self.processes)]
        lines += [f"mount {path}" for path in sorted(self.mounts)]
        lines += [f"machine's folder {path}" for path in sorted(self.machines)]
        return "\n".join(lines)


def look(vms: Path, *, folders: Collection[Path], marked: Path | None = None) -> Traces:
    """What there is now: machines in `vms`, mounts below `folders`, our descriptors, children and orphans of theirs.

    With `marked`, also processes that are no children of ours but have that runtime folder in their environment, as
    all have that a command of this run started; it costs 7 ms.
    """
    return Traces(
        frozenset(open_descriptors()),
        frozenset([*children(), *_ORPHANS.find(), *(processes_of(marked) if marked is not None else ())]),
        frozenset(path for path in mount_points() if any(Path(path).is_relative_to(folder) for folder in folders)),
        frozenset(map(str, vms.glob("*"))),
    )


def open_descriptors() -> list[str]:
    """Number and target of each descriptor of this process, but for those that stay open as long as it runs."""
    own = _of_the_blocking_api()
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            target = os.readlink(f"/proc/self/fd/{name}")
            if int(name) not in own and not target.startswith(_LIBRARIES):
                found.append(f"{name} {target}")
    return found


def _of_the_blocking_api() -> set[int]:
    """The descriptors of its event loop, which is made once in a process."""
    loop: Any = portal._loop
    return set() if loop is None else {loop._selector.fileno(), loop._ssock.fileno(), loop._csock.fileno()}


def children() -> list[int]:
    """Our children, those that ended and were not reaped too."""
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with suppress(OSError):  # the thread has ended
            found += map(int, Path("/proc/self/task", task, "children").read_text().split())
    return found


def processes_of(runtime: Path) -> list[int]:
    """All processes but this one whose environment names that runtime folder, as that of a command's children does."""
    mark = b"VMFORK_RUNTIME_DIR=" + os.fsencode(runtime) + b"\0"
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):  # it has ended, or is another user's
            if name.isdigit() and int(name) != os.getpid() and mark in Path("/proc", name, "environ").read_bytes():
                found.append(int(name))
    return found


def kill(pids: Collection[int]) -> None:
    """They are gone, and reaped where they are ours, so that whoever comes next has nothing to do with them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def command_of(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return command or f"{Path(f'/proc/{pid}/comm').read_text().strip()}, ended and not reaped"
    except OSError:
        return "ended"
