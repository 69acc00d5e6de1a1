"""What a QEMU process starts with: what it inherits, what it is put into, and what it finds in its environment."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmfork.errors import HostError, ImageError
from vmfork.host.environ import bare_environ
from vmfork.host.jail import Jail, find_preload
from vmfork.host.users import lease_user
from vmfork.hypervisor.base import Boot, ForkedRAM, Restore, SharedRAM

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from vmfork.hypervisor.base import Containment, Launch

KVM = "/dev/kvm"
RESOLVERS = "/etc/resolv.conf"
# Read by preload/: preload.c, memory.c, overlay.c and pages.c.
_KVM_VARIABLE = "VMFORK_KVM_FD"
_KEEPER_VARIABLE = "VMFORK_KEEPER_FD"
_LAYERS_VARIABLE = "VMFORK_LAYERS"
_PAGES_VARIABLE = "VMFORK_SMALL_PAGES"


def make_jail(
    containment: Containment, *, folder: Path, groups: tuple[str, ...] = (), scratch_mib: int = 0, opened: ExitStack
) -> Jail:
    """What the machine of `folder` is put into. A user id was leased where it gets one, until `opened` is closed."""
    has_root = containment.has("namespaces")
    users = containment.users if containment.has("user") else None
    return Jail(
        root=folder if has_root else None,
        bound=(
            (*containment.reads, *_read_outward(containment), str(find_preload()))
            if has_root or containment.has("landlock")
            else ()
        ),
        mapped=containment.mapped and has_root,
        outward=containment.outward,
        # Beside the disk's content its file has tables that say where that is: less than a 500th, and two clusters.
        file_mib=scratch_mib + scratch_mib // 500,
        groups=groups,
        lease=None if users is None else opened.enter_context(lease_user(users)),
    )


def _read_outward(containment: Containment) -> tuple[str, ...]:
    """Where the user network reads whom it asks for names, wherever that file is."""
    return (RESOLVERS,) if containment.outward and os.path.exists(RESOLVERS) else ()


def make_environment(launch: Launch, *, kvm_fd: int | None, keeper_fd: int) -> dict[str, str]:
    """All of QEMU's environment."""
    layers = list_layers(launch)
    return {
        **({} if launch.containment.has("filter") else bare_environ()),
        "LD_PRELOAD": str(find_preload()),
        _KEEPER_VARIABLE: str(keeper_fd),
        **({} if kvm_fd is None else {_KVM_VARIABLE: str(kvm_fd)}),
        **({_LAYERS_VARIABLE: ",".join(map(str, layers))} if len(layers) > 1 else {}),
        **({_PAGES_VARIABLE: "1"} if layers else {}),
    }


def list_layers(launch: Launch) -> tuple[int, ...]:
    """Descriptors of the files that its RAM is read from, lowest first."""
    return launch.ram.layers if isinstance(launch.ram, ForkedRAM) else ()


def open_kvm(launch: Launch, *, opened: ExitStack) -> int | None:
    """A descriptor of /dev/kvm where the contained machine needs it: it may neither see nor open the device itself."""
    if launch.hardware.accel != "kvm" or not launch.containment.has("filter"):
        return None
    try:
        fd = os.open(KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot open {KVM}: {error.strerror}", hint="vmfork doctor tells what to do") from error
    opened.callback(os.close, fd)
    return fd


def open_image(launch: Launch, *, opened: ExitStack) -> tuple[int, int]:
    """Kernel and initramfs of a machine that boots; -1 each for one that does not. Raises `ImageError`."""
    if not isinstance(launch.start, Boot):
        return -1, -1
    return _open(launch.start.kernel, opened), _open(launch.start.initramfs, opened)


def _open(path: Path, opened: ExitStack) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(
            f"cannot read {path}: {error.strerror}", hint="build the image again: vmfork image build"
        ) from error
    opened.callback(os.close, fd)
    return fd


def list_inherited(launch: Launch) -> list[int]:
    """Descriptors of RAM, disks and device state, as far as they are files."""
    files = [*list_layers(launch), *([launch.ram.fd] if isinstance(launch.ram, SharedRAM) else [])]
    if launch.disk_fd is not None:
        files.append(launch.disk_fd)
    if launch.scratch is not None:
        files += [launch.scratch.base_fd, launch.scratch.own_fd]
    return [*files, launch.start.state_fd] if isinstance(launch.start, Restore) else files
