"""What decides whether a template fits: an allow-list, compared in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host import facts
from vmfork.hypervisor.qemu import board_of, choose_cpu_model

if TYPE_CHECKING:
    from vmfork.config import VMConfig
    from vmfork.hypervisor.base import Hardware
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image


# The digest of the disk that the root is on; only machines with one have it.
DISK = "image.disk"
# The MiB of a disk that the guest writes to.
SCRATCH = "disk_mib"


def emulator_traits(hardware: Hardware, binary: QemuBinary) -> dict[str, str]:
    """Device state of one emulator version is not read by another with a different answer."""
    traits = {
        "qemu.version": binary.version,
        "machine": board_of(hardware.machine).type_for(binary),
        "accel": hardware.accel,
        "cpu_model": hardware.cpu_model,
    }
    if hardware.accel == "kvm" and hardware.cpu_model.startswith(("host", "max")):
        # Such a guest has found features that another CPU may lack: it would die of an illegal instruction some time.
        traits["host_cpu"] = facts.cpu_name()
    return traits


def image_traits(image: Image) -> dict[str, str]:
    """What the guest boots: its memory holds addresses of just this kernel, and blocks of just this disk."""
    disk = {DISK: image.disk_sha256} if image.disk_sha256 else {}
    return {"image.kernel": image.kernel_sha256, "image.initramfs": image.initramfs_sha256, **disk}


def agent_reseeds(reseed: str) -> bool:
    """Whether the guest's agent renews the kernel's random numbers, where the trait `reseed` has this value."""
    return reseed in ("both", "agent")


def wanted_traits(config: VMConfig, *, machine: str, accel: str) -> dict[str, str]:
    """What `config` asks of a `machine` that runs under `accel`. What it leaves to the host is not in it."""
    chosen: dict[str, str] = {} if config.accel == "auto" else {"accel": config.accel}
    if config.machine != "auto":
        chosen["machine"] = machine if board_of(machine).kind == config.machine else config.machine
    return {
        **chosen,
        "cpu_model": choose_cpu_model(config.cpu_model, accel),
        **guest_traits(config, machine, accel),
    }


def guest_traits(config: VMConfig, machine: str, accel: str) -> dict[str, str]:
    """What of `config` a guest shows for good, once it was booted as a `machine` under `accel`."""
    return {
        "kernel_args": config.kernel_args,
        "reseed": _reseed_in_force(config, machine),
        "aslr": "on" if has_aslr(config, accel) else "off",
        "nic": "on" if config.nic else "off",
        SCRATCH: str(config.disk_mib),
    }


def _reseed_in_force(config: VMConfig, machine: str) -> str:
    """Who renews a fork's random numbers: what was asked for, as far as the machine has it."""
    return config.reseed if board_of(machine).has_vmgenid or config.reseed != "both" else "agent"


def has_aslr(config: VMConfig, accel: str) -> bool:
    """Whether programs of the guest start at random addresses.

    QEMU 7.2 finds translated code by its virtual address, so that a program at another address is translated from the
    start: `true` took 38 ms in place of 13 (measured side by side), and left 1.3 MB of code behind each time.
    """
    return config.aslr == "on" or (config.aslr == "auto" and accel != "tcg")
