"""What decides whether a template fits: an allow-list, compared in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host import facts
from vmfork.hypervisor.qemu import board_of

if TYPE_CHECKING:
    from vmfork.hypervisor.base import Hardware
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image


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
    """What the guest boots: device state holds addresses of just this kernel."""
    return {"image.kernel": image.kernel_sha256, "image.initramfs": image.initramfs_sha256}


def agent_reseeds(reseed: str) -> bool:
    """Whether the guest's agent renews the kernel's random numbers, where the trait `reseed` has this value."""
    return reseed in ("both", "agent")
