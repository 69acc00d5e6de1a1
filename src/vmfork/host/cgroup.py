"""How much memory our control groups still let us use: a container's limit is often far below the host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SELF = Path("/proc/self")

# Limit, use, and the use that is given back when memory is short: version 2 (Documentation/admin-guide/cgroup-v2.rst),
# then version 1 (cgroup-v1/memory.rst), whose figures without `total_` leave groups below out. Pages of a tmpfs are not
# among what is given back.
_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def memory_left_bytes(*, proc: Path = _SELF) -> int | None:
    """Bytes the process described by `proc` may still use in its group and every group above; `None` without a limit.

    A file that cannot be read counts as no limit: the kernel enforces it anyway.
    """
    left = (_left_in(folder, *_FILES[kind]) for kind, folder in _groups(proc))
    return min((amount for amount in left if amount is not None), default=None)


def _groups(proc: Path) -> Iterator[tuple[str, Path]]:
    """Kind and folder of each group, ours first, as far up as we can see."""
    paths = _own_paths(proc)
    for kind, root, mounted in _mounts(proc):
        if kind not in paths:
            continue
        # A container may see only a part of the hierarchy, and its path may still be told from the top.
        inside = paths[kind].removeprefix(root.rstrip("/")).lstrip("/")
        folder = mounted / inside
        yield from ((kind, group) for group in (folder, *folder.parents) if group.is_relative_to(mounted))


def _own_paths(proc: Path) -> dict[str, str]:
    """Our path in the hierarchy of either version (cgroups(7): `ID:CONTROLLERS:PATH`)."""
    paths = {}
    for line in _read(proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    return paths


def _mounts(proc: Path) -> Iterator[tuple[str, str, Path]]:
    """Kind, root and place of each mounted hierarchy that may count memory (proc(5), mountinfo)."""
    for line in _read(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, mounted = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            yield kind, root, Path(mounted)


def _left_in(group: Path, limit_file: str, use_file: str, reclaimable: str) -> int | None:
    limit, use = _read(group / limit_file).strip(), _read(group / use_file).strip()
    if not (limit.isdigit() and use.isdigit()):  # `max`, or no such file: the root has none
        return None
    stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())
    return max(0, int(limit) - int(use) + int(stat.get(reclaimable, 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
