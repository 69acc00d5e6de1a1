"""Mount namespaces: a mount is seen by the processes of the namespace it was made in, and of those it propagates to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROC = Path("/proc")
# include/uapi/linux/nsfs.h: PID_NS_INIT_INO. From this namespace every process of the host is seen.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC


def mount_namespace(pid: int | str = "self") -> str:
    """The mount namespace of the process, as the kernel names it: `mnt:[4026531841]`. Raises `OSError`."""
    return os.readlink(_PROC / str(pid) / "ns" / "mnt")


def find_holder(namespace: str) -> str:
    """What keeps the mount namespace of that name alive, in words; empty when it is gone, and its mounts with it.

    A process that cannot be looked at may be a member, except the host's first, whose namespace is no private one.
    The kernel gives the name of a namespace that is gone to a later one.
    """
    hidden = os.stat(_PROC / "self" / "ns" / "pid").st_ino != _FIRST_PID_NAMESPACE
    for pid in _pids():
        try:
            if mount_namespace(pid) == namespace:
                return f"process {pid} ({_name_of(pid)})"
        except PermissionError:
            hidden = hidden or pid != 1
        except OSError:
            continue  # it has ended
    for fields in _read_mounts():
        if fields[3] == namespace:  # kept by a bind mount, as unshare(1) --mount=FILE does
            return f"the file {fields[4]}"
    return "a process that cannot be seen from here" if hidden else ""


def is_private(mount_point: Path) -> bool:
    """Whether the mount there propagates nowhere, and process 1, or our parent, does not see it."""
    if not {mount_namespace()} ^ _namespaces_around():
        return False
    found = [fields for fields in _read_mounts() if fields[4] == os.path.realpath(mount_point)]
    return bool(found) and not any(field.startswith("shared:") for field in found[-1][6:])


def _namespaces_around() -> set[str]:
    """Mount namespaces of the host's first process and of our parent, as far as we may look at them."""
    found = set()
    for pid in (1, os.getppid()):
        with suppress(OSError):
            found.add(mount_namespace(pid))
    return found or {mount_namespace()}


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir(_PROC) if name.isdecimal())


def _name_of(pid: int) -> str:
    return (_PROC / str(pid) / "comm").read_text().strip()


def _read_mounts() -> Iterator[list[str]]:
    """Fields of each mount (proc_pid_mountinfo(5)): the fourth is its root, the fifth its place, from the seventh tags.

    Lines are in the order of mounting, but for what was moved.
    """
    with (_PROC / "self" / "mountinfo").open(errors="surrogateescape") as lines:
        return iter([line.partition(" - ")[0].split(" ") for line in lines])
