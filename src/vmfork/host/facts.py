"""What this host is and has right now."""

from __future__ import annotations

import hashlib
import itertools
import os
import pwd
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vmfork.host import cgroup
from vmfork.host.procfs import read_whole

# What a root who is root has: every user id up to that of nobody.
_IDS = 65535
# linux/capability.h
_SYS_ADMIN = 21


@cache
def boot_id() -> str:
    """The host's boot id. When it changes, template RAM on a tmpfs is gone."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kernel_release() -> str:
    return os.uname().release


def user_name() -> str:
    """The name of the user we run as, else the number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def has_all_ids() -> bool:
    """Whether every user id up to that of nobody is known here: not in a user namespace that maps a few."""
    return _count_ids(Path("/proc/self/uid_map").read_text()) >= _IDS


def has_ids(first: int, last: int) -> bool:
    """Whether all user and group ids from `first` to `last` are known here: most containers map fewer."""
    maps = (Path(f"/proc/self/{kind}_map").read_text().splitlines() for kind in ("uid", "gid"))
    return all(any(_covers(line, first, last) for line in lines) for lines in maps)


def _covers(line: str, first: int, last: int) -> bool:
    """Whether a line of a map (user_namespaces(7)) has all these ids."""
    start, _, count = map(int, line.split())
    return start <= first and last < start + count


def _count_ids(uid_map: str) -> int:
    return sum(int(line.split()[2]) for line in uid_map.splitlines())


def may_mount() -> bool:
    """Whether we are root who may mount (CAP_SYS_ADMIN, capabilities(7)): not so in most containers."""
    status = Path("/proc/self/status").read_text()
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return has_all_ids() and bool(int(effective, 16) >> _SYS_ADMIN & 1)


@cache
def cpu_name() -> str:
    """This host's CPU as a guest with the CPU model `host` sees it: name, numbers, and a digest of its flags."""
    with Path("/proc/cpuinfo").open() as file:
        first = (line.partition(":") for line in itertools.takewhile(str.strip, file))
        fields = {key.strip(): value.strip() for key, _, value in first}
    flags = hashlib.sha256(" ".join(sorted(fields.get("flags", "").split())).encode()).hexdigest()[:12]
    numbers = "-".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{fields.get('model name', 'unknown')} ({numbers}, flags {flags})"


class HostMemory(NamedTuple):
    """Bytes of RAM that we may use in all, and those of them that can be had without swapping.

    The host's (MemTotal and MemAvailable, proc(5)), or a control group's where that has less.
    """

    total: int
    available: int


def read_memory() -> HostMemory:
    """What there is for us at this moment."""
    meminfo, room = read_whole("/proc/meminfo"), cgroup.find_memory_room()
    host = HostMemory(_kib_in(meminfo, b"MemTotal:") * 1024, _kib_in(meminfo, b"MemAvailable:") * 1024)
    return host if room is None else HostMemory(min(host.total, room.limit), min(host.available, room.left))


def available_memory_bytes() -> int:
    """Bytes that can be used without swapping: MemAvailable (proc(5)), or less where a control group sets a limit."""
    return read_memory().available


def total_memory_bytes() -> int:
    """Bytes of RAM that the host has in all (MemTotal, proc(5))."""
    return _kib_in(read_whole("/proc/meminfo"), b"MemTotal:") * 1024


def _kib_in(meminfo: bytes, name: bytes) -> int:
    """The figure of the line `name`; 0 where there is no such line."""
    line = meminfo.partition(name)[2].partition(b"\n")[0]
    return int(line.split()[0]) if line else 0


def free_space_bytes(path: Path) -> int:
    """Bytes that we may still write to the file system of `path`, or of its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
