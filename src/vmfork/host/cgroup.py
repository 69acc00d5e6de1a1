"""What our control groups still let us use: a container's limit is often far below what the host has."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vmfork.host.procfs import read_whole

_SELF = Path("/proc/self")

# Limit, use, and the use that is given back when memory is short: version 2 (Documentation/admin-guide/cgroup-v2.rst),
# then version 1 (cgroup-v1/memory.rst), whose figures without `total_` leave groups below out. Pages of a tmpfs are not
# among what is given back.
_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
# The file that a group has where it counts something.
_MARKS = {
    "memory": {kind: names[0] for kind, names in _FILES.items()},
    "pids": {"cgroup2": "pids.max", "cgroup": "pids.max"},
    "pressure": {"cgroup2": "memory.pressure"},
}
# Every fork asks for its groups. Looking for them takes four times as long as reading what they say, so it is done this
# often: processes are seldom moved.
_LOOK_EVERY_S = 10.0
# Version 1 spells "no limit" as the largest number of whole pages that a long has.
_NO_LIMIT = 1 << 62


class MemoryRoom(NamedTuple):
    """A group's limit, and what of it may still be used, in bytes."""

    limit: int
    left: int


class OwnGroup(NamedTuple):
    """Where we are in a hierarchy: `cgroup2` or `cgroup`, our group's folder, and the one that is mounted."""

    kind: str
    folder: Path
    mounted: Path

    def to_top(self) -> list[Path]:
        """Our group and those above it, as far up as we can see."""
        return [group for group in (self.folder, *self.folder.parents) if group.is_relative_to(self.mounted)]


def locate_own(counted: str, *, proc: Path = _SELF) -> list[OwnGroup]:
    """Our group in each hierarchy that may count what is `counted`: a controller of version 1, or version 2."""
    return _locate(proc, counted, int(time.monotonic() / _LOOK_EVERY_S))


def find_memory_room(*, proc: Path = _SELF) -> MemoryRoom | None:
    """The group, ours or one above, that leaves the process of `proc` the least memory; `None` without a limit.

    A file that cannot be read counts as no limit: the kernel enforces it anyway.
    """
    rooms = (_room_in(folder, *_FILES[kind]) for kind, folder in _groups(proc))
    return min((room for room in rooms if room is not None), key=lambda room: room.left, default=None)


def count_tasks_left(*, proc: Path = _SELF) -> int | None:
    """How many more processes and threads our groups allow (pids.max, both versions); `None` without a limit."""
    left = (_count_left_in(folder) for _, folder in _groups(proc, "pids"))
    return min((count for count in left if count is not None), default=None)


def locate_pressure(*, proc: Path = _SELF) -> str | None:
    """The file that tells how our own group waits for memory (version 2 alone); `None` where there is none."""
    return next((f"{folder}/memory.pressure" for _, folder in _groups(proc, "pressure")), None)


def _groups(proc: Path, counted: str = "memory") -> tuple[tuple[str, str], ...]:
    """Kind and folder of each group that counts what is `counted`, ours first, as far up as we can see."""
    return _find_groups(proc, counted, int(time.monotonic() / _LOOK_EVERY_S))


@lru_cache(maxsize=8)
def _find_groups(proc: Path, counted: str, at: int) -> tuple[tuple[str, str], ...]:
    marks = _MARKS[counted]
    found: list[tuple[str, str]] = []
    for own in _locate(proc, counted, at):
        groups = (group for group in own.to_top() if own.kind in marks)
        found += [(own.kind, str(group)) for group in groups if (group / marks[own.kind]).exists()]
    return tuple(found)


def _locate(proc: Path, counted: str, at: int) -> list[OwnGroup]:
    of_ours, mounts = _read_own(proc, at)
    paths = _own_paths(of_ours, counted)
    found = []
    for kind, root, mounted in _mounts(mounts, counted):
        if kind in paths:
            # A container may see only a part of the hierarchy, and its path may still be told from the top.
            inside = paths[kind].removeprefix(root.rstrip("/")).lstrip("/")
            found.append(OwnGroup(kind, mounted / inside, mounted))
    return found


@lru_cache(maxsize=4)
def _read_own(proc: Path, _at: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines of our `cgroup` and of `mountinfo`, once for all that is counted: each template of root's is a mount."""
    return tuple(_read(f"{proc}/cgroup").splitlines()), tuple(_read(f"{proc}/mountinfo").splitlines())


def _own_paths(lines: tuple[str, ...], counted: str) -> dict[str, str]:
    """Our path in the hierarchy of either version (cgroups(7): `ID:CONTROLLERS:PATH`)."""
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif counted in controllers.split(","):
            paths["cgroup"] = path
    return paths


def _mounts(lines: tuple[str, ...], counted: str) -> list[tuple[str, str, Path]]:
    """Kind, root and place of each mounted hierarchy that may count what is `counted` (proc(5), mountinfo)."""
    found = []
    for line in lines:
        before, _, after = line.partition(" - ")
        root, mounted = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" or (kind == "cgroup" and counted in options.split(",")):
            found.append((kind, root, Path(mounted)))
    return found


def _room_in(group: str, limit_file: str, use_file: str, reclaimable: str) -> MemoryRoom | None:
    limit = _read(f"{group}/{limit_file}").strip()
    if not limit.isdigit() or int(limit) > _NO_LIMIT:  # `max`, or no such file: the root has none
        return None
    use = _read(f"{group}/{use_file}").strip()
    if not use.isdigit():
        return None
    stat = dict(line.split() for line in _read(f"{group}/memory.stat").splitlines())
    return MemoryRoom(int(limit), max(0, int(limit) - int(use) + int(stat.get(reclaimable, 0))))


def _count_left_in(group: str) -> int | None:
    most, now = _read(f"{group}/pids.max").strip(), _read(f"{group}/pids.current").strip()
    return max(0, int(most) - int(now)) if most.isdigit() and now.isdigit() else None


def _read(path: str) -> str:
    return read_whole(path).decode(errors="replace")
