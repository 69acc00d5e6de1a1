"""What can be said of /dev/kvm without running a guest. Presence and access prove nothing more."""

from __future__ import annotations

import errno
import grp
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vmfork.host import facts

_log = logging.getLogger("vmfork")

DEVICE = Path("/dev/kvm")
_MODULES = Path("/sys/module")

_WHY = {
    errno.ENOENT: f"{DEVICE} does not exist",
    # The node is there, and no driver behind it.
    errno.ENODEV: f"{DEVICE} is there, but no KVM module is loaded",
    errno.ENXIO: f"{DEVICE} is there, but no KVM module is loaded",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why KVM cannot even be tried. `todo` mends it, where something does; `forbidden`: it is there, but not for us."""

    reason: str
    todo: str = ""
    forbidden: bool = False


def find_refusal() -> Refusal | None:
    """`None` when the device can be opened by this user.

    It is opened because its mode tells only half: a container's device rules refuse even root.
    """
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        code = error.errno or 0
    else:
        return None
    if code in (errno.EACCES, errno.EPERM):
        return Refusal(f"{DEVICE} may not be opened by {facts.user_name()}", _how_to_permit(), forbidden=True)
    todo = "enable virtualization in the firmware or hypervisor, and load kvm_intel or kvm_amd"
    return Refusal(_WHY.get(code, f"{DEVICE} cannot be opened: {os.strerror(code)}"), todo)


@cache
def warn_if_forbidden() -> None:
    """The log says, once per process, that TCG is used only because this user may not open the device.

    It also says what mends that.
    """
    refusal = find_refusal()
    if refusal is not None and refusal.forbidden:
        _log.warning("note: %s: TCG is used, many times slower. To change that: %s", refusal.reason, refusal.todo)


def _how_to_permit() -> str:
    name = facts.user_name()
    if os.geteuid() == 0:
        return f"allow {DEVICE} in this container's device rules"
    with suppress(OSError, KeyError):
        info = DEVICE.stat()
        if info.st_mode & 0o060 == 0o060 and info.st_gid != 0:
            return f"sudo usermod -aG {grp.getgrgid(info.st_gid).gr_name} {name}, then log in again"
    return f"sudo setfacl -m u:{name}:rw {DEVICE}"


def read_parameters() -> dict[str, str]:
    """The parameters of KVM's loaded modules, such as `kvm_amd/npt`: they change what a guest can do."""
    found = {}
    for path in sorted(_MODULES.glob("kvm*/parameters/*")):
        with suppress(OSError):  # some may be read by root alone
            found[f"{path.parts[-3]}/{path.name}"] = path.read_text().strip()
    return found
