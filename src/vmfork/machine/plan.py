"""What a configuration stands for on this host, decided. Below this, no machine is made by asking a configuration."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.hypervisor.base import Hardware
from vmfork.hypervisor.qemu import board_for, choose_cpu_model
from vmfork.machine.board import board_args, check_clock
from vmfork.machine.traits import agent_reseeds, emulator_traits, guest_traits, has_aslr, image_traits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.config import Limits, VMConfig
    from vmfork.config.isolation import IsolationPolicy
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image

# A panic reboots at once, and QEMU, told not to reboot, ends: the host learns of it without waiting for a deadline.
# The devices that are switched off are in none of these machines, and a kernel would look for them at every boot.
KERNEL_ARGS = "console=ttyS0 loglevel=4 panic=-1 i8042.noaux i8042.nokbd 8250.nr_uarts=1 no_timer_check"

# The unpacked initramfs is the root. As a tmpfs it tells its size, and that it is full; a ramfs takes the memory that
# programs run in, until the kernel panics. But a tmpfs stops at half the RAM, and what does not fit is missing without
# a word, unless `initramfs_options` says otherwise: since Linux 6.18, and the stable kernels of October 2025. The agent
# sets the limit once all is unpacked. Inodes have none, because every name of a file counts as one.
_TMPFS_ROOT = "rootfstype=tmpfs initramfs_options=size=200%,nr_inodes=0"
_RAMFS_ROOT = "rootfstype=ramfs"
_FIRST_WITH_OPTIONS = {(6, 1): 158, (6, 6): 114, (6, 12): 55, (6, 17): 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How machines of one kind are booted on this host. Nothing in it is left to decide.

    `reseed`: the guest's agent renews the kernel's random numbers. `traits` are what a template of such machines is
    compared by. `policy`: what is asked of their isolation. `limits` say how much of the host
    they may be given.
    """

    image: Image
    binary: QemuBinary
    hardware: Hardware
    command_line: str
    reseed: bool
    traits: Mapping[str, str]
    boot_timeout_s: float
    hook_timeout_s: float
    policy: IsolationPolicy
    limits: Limits


async def make_plan(config: VMConfig, *, image: Image, binary: QemuBinary, accel: str) -> Plan:
    """The plan for machines of `config` under the accelerator `accel`, whatever `config` says of that.

    Raises `HostError` when its guest would have no clock to go by.
    """
    hardware = replace(make_hardware(config, binary=binary, accel=accel), disk=bool(image.disk_sha256))
    check_clock(hardware)
    aslr = "" if has_aslr(config, accel) else " norandmaps"
    root = choose_root(image.kernel_release)
    init = f" rdinit={image.init}" if image.init else ""
    arguments = (
        f"{KERNEL_ARGS} {root}{init}{aslr}{await board_args(hardware)}{_room_to_grow(hardware)} {config.kernel_args}"
    )
    return Plan(
        image=image,
        binary=binary,
        hardware=hardware,
        command_line=arguments.rstrip(),
        reseed=agent_reseeds(config.reseed),
        traits={
            **emulator_traits(hardware, binary),
            **image_traits(image),
            **guest_traits(config, hardware.machine, accel),
        },
        boot_timeout_s=config.boot_timeout_s,
        hook_timeout_s=config.hook_timeout_s,
        policy=config.isolation_policy,
        limits=config.limits,
    )


def make_hardware(config: VMConfig, *, binary: QemuBinary, accel: str) -> Hardware:
    """What the guest of `config` sees under the accelerator `accel`."""
    board = board_for(config.machine)
    return Hardware(
        machine=board.type_for(binary),
        accel=accel,
        cpu_model=choose_cpu_model(config.cpu_model, accel),
        cpus=config.cpus,
        memory_mib=int(config.memory_mib),  # what a machine has is a fact, whoever said it
        max_cpus=config.max_cpus,
        max_memory_mib=config.max_memory_mib,
        vmgenid=board.has_vmgenid and config.reseed in ("both", "vmgenid"),
        nic=config.nic,
        scratch_mib=config.disk_mib,
    )


def choose_root(kernel_release: str) -> str:
    """The arguments that make the guest's root what its kernel can."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", kernel_release)
    if found is None:
        return _RAMFS_ROOT
    major, minor, patch = map(int, found.groups())
    knows = (major, minor) >= (6, 18) or patch >= _FIRST_WITH_OPTIONS.get((major, minor), sys.maxsize)
    return _TMPFS_ROOT if knows else _RAMFS_ROOT


def _room_to_grow(hardware: Hardware) -> str:
    # Nothing is said where nothing can grow: the guest boots as it always did.
    arguments = ""
    if hardware.max_cpus > hardware.cpus:
        # `noreplace-smp` keeps the code for several CPUs from the start. Else the kernel rewrites its code when the
        # second CPU comes: 0.2 s under TCG.
        arguments += f" maxcpus={hardware.cpus} noreplace-smp"
        if hardware.accel == "tcg":
            # Else the kernel measures each CPU that comes online, for 1 to 3 s and in vain. This many TSC ticks are a
            # jiffy (250 Hz) at 6 GHz, so that a driver's delay may be longer than asked, never shorter. KVM tells its
            # guest.
            arguments += " lpj=24000000"
    if hardware.max_memory_mib > hardware.memory_mib:
        # Where memory may come above 4 GiB, the kernel sets 64 MiB aside for devices that cannot reach it. There are
        # none here, and 512 slots, 1 MiB, are the least that it takes.
        arguments += " swiotlb=512"
        # Else the kernel puts data of its own into the first piece at once, and never gives it back. With this it keeps
        # it out of what is added, up to three times what it was booted with (Linux 5.15, mm/memory_hotplug.c).
        arguments += " memory_hotplug.online_policy=auto-movable"
    return arguments
