"""What decides whether a template fits: an allow-list, compared in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host import facts
from vmfork.hypervisor.qemu import board_of, default_cpu_model
from vmfork.machine.launch import decide_aslr

if TYPE_CHECKING:
    from vmfork.config import VMConfig
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
    return {"image.kernel": image.kernel_sha256, "image.initramfs": image.initramfs_sha256}


def aslr_trait(config: VMConfig, accel: str) -> str:
    return "on" if decide_aslr(config, accel) else "off"


def wanted_traits(config: VMConfig, *, machine: str, accel: str) -> dict[str, str]:
    """What `config` asks of a `machine` that runs under `accel`. What it leaves to the host is not in it."""
    chosen: dict[str, str] = {} if config.accel == "auto" else {"accel": config.accel}
    if config.machine != "auto":
        chosen["machine"] = machine if board_of(machine).kind == config.machine else config.machine
    return {
        **chosen,
        "cpu_model": config.cpu_model or default_cpu_model(accel),
        "kernel_args": config.kernel_args,
        "reseed": reseed_trait(config, machine),
        "aslr": aslr_trait(config, accel),
    }


def reseed_trait(config: VMConfig, machine: str) -> str:
    """Who renews a fork's random numbers: what was asked for, as far as the machine has it."""
    return config.reseed if board_of(machine).has_vmgenid or config.reseed != "both" else "agent"


def all_traits(hardware: Hardware, binary: QemuBinary, image: Image, config: VMConfig) -> dict[str, str]:
    return {
        **emulator_traits(hardware, binary),
        **image_traits(image),
        "kernel_args": config.kernel_args,
        "reseed": reseed_trait(config, hardware.machine),
        "aslr": aslr_trait(config, hardware.accel),
    }
