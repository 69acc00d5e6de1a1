"""How many more descriptors, processes and threads this process may have."""

from __future__ import annotations

import os
import resource
from contextlib import suppress

from vmfork.host import cgroup
from vmfork.host.procfs import read_whole

_OWN_FILES = "/proc/self/fd"
# Where fewer are left by the host's count of all tasks, this user's own are counted one by one.
_AMPLE = 256


def count_descriptors_left(*, limit: int | None = None) -> int | None:
    """How many more descriptors this process may open (RLIMIT_NOFILE); `None` without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    return None if limit == resource.RLIM_INFINITY else max(0, limit - _count_open())


def _count_open() -> int:
    # Since Linux 6.2 the size of the folder is the number of its entries, and nobody need list them (proc(5)).
    return os.stat(_OWN_FILES).st_size or len(os.listdir(_OWN_FILES)) - 1


def count_tasks_left() -> int | None:
    """How many more processes and threads there may be, at the least; `None` where nothing limits them.

    The limits of the host, of this user (RLIMIT_NPROC, which does not bind root), and of our control groups.
    """
    left = [cgroup.count_tasks_left()]
    running = _count_running()
    if running is not None:
        left += [most - running for most in (_read_number("threads-max"), _read_number("pid_max")) if most]
        left.append(_count_left_to_user(running))
    return min((max(0, count) for count in left if count is not None), default=None)


def _count_left_to_user(running: int, *, uid: int | None = None, limit: int | None = None) -> int | None:
    uid = os.getuid() if uid is None else uid
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0] if limit is None else limit
    if uid == 0 or limit == resource.RLIM_INFINITY:
        return None
    # All tasks of the host are at least as many as the user's. Where these leave enough, nothing need be counted.
    return limit - running if limit - running >= _AMPLE else limit - _count_of_user(uid)


def _count_of_user(uid: int) -> int:
    """How many tasks the user has: /proc/PID/task has a link for each beside its own two (proc(5))."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            info = os.stat(f"/proc/{name}/task")
            count += info.st_nlink - 2 if info.st_uid == uid else 0
    return count


def _count_running() -> int | None:
    """All tasks of the host (proc(5), loadavg: the second number of the fourth field)."""
    try:
        return int(read_whole("/proc/loadavg").split()[3].partition(b"/")[2])
    except (ValueError, IndexError):
        return None


def _read_number(name: str) -> int | None:
    try:
        return int(read_whole(f"/proc/sys/kernel/{name}"))
    except ValueError:
        return None
