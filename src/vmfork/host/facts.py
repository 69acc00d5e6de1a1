"""What this host is and has right now."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vmfork.host import cgroup

KVM = Path("/dev/kvm")
_MODULES = Path("/sys/module")


@cache
def boot_id() -> str:
    """The host's boot id: template RAM on a tmpfs does not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kernel_release() -> str:
    return os.uname().release


@dataclass(frozen=True, slots=True)
class KVMDevice:
    """What can be said of /dev/kvm without running anything: presence and access prove nothing more."""

    exists: bool
    accessible: bool


def kvm_device() -> KVMDevice:
    return KVMDevice(KVM.exists(), os.access(KVM, os.R_OK | os.W_OK))


def kvm_parameters() -> dict[str, str]:
    """The parameters of KVM's loaded modules, such as `kvm_amd/npt`: they change what a guest can do."""
    found = {}
    for path in sorted(_MODULES.glob("kvm*/parameters/*")):
        with suppress(OSError):  # some may be read by root alone
            found[f"{path.parts[-3]}/{path.name}"] = path.read_text().strip()
    return found


def kvm_permission() -> str:
    """The command that lets this user open /dev/kvm; empty where no group may."""
    with suppress(OSError, KeyError):
        info = KVM.stat()
        if info.st_mode & 0o060 == 0o060:
            return f"sudo usermod -aG {grp.getgrgid(info.st_gid).gr_name} {user_name()}, then log in again"
    return ""


def user_name() -> str:
    """The name of the user we run as, else the number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def available_memory_bytes() -> int:
    """Bytes that can be used without swapping: MemAvailable (proc(5)), or less where a control group sets a limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    host = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    ours = cgroup.memory_left_bytes()
    return host if ours is None else min(host, ours)


def total_memory_bytes() -> int:
    """Bytes of RAM that the host has in all (MemTotal, proc(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def free_space_bytes(path: Path) -> int:
    """Bytes that we may still write to the file system of `path`, or of its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize
