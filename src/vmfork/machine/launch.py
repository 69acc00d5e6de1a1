"""From a configuration, or from frozen state, to a started machine, or to an error and nothing left."""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.adopt.identity import Identity
from vmfork.adopt.thaw import Thaw
from vmfork.hypervisor.base import AnonymousRAM, Boot, ForkedRAM, Hardware, Launch, Restore, SharedRAM
from vmfork.hypervisor.qemu import QemuMachine
from vmfork.machine.board import board_args
from vmfork.machine.folder import VMFolder, VMRecord, new_vm_id, sweep_vms
from vmfork.units import format_mib

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Places, VMConfig
    from vmfork.hypervisor.base import RAM, Machine
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image
    from vmfork.machine.base import BaseVM

# A panic reboots at once, and QEMU, told not to reboot, ends: the host learns of it without waiting for a deadline.
# What is switched off is looked for at every boot and found in none of these machines.
# The unpacked initramfs is the root: a ramfs may take what it needs, a tmpfs would stop at half the RAM.
KERNEL_ARGS = (
    "console=ttyS0 loglevel=4 panic=-1 rootfstype=ramfs i8042.noaux i8042.nokbd 8250.nr_uarts=1 no_timer_check"
)

# What a watched boot adds. Without it the kernel prints nothing between the firmware and the agent, 1 s under TCG and
# more than 10 s under a nested KVM. While it unpacks the initramfs it prints nothing, but touches page after page.
_VERBOSE = "loglevel=7"

_swept: set[Path] = set()


@dataclass(frozen=True, slots=True)
class BootPlan:
    """A configuration with everything it stands for on this host: image, emulator, decided hardware."""

    config: VMConfig
    image: Image
    binary: QemuBinary
    hardware: Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What a fork is made from: descriptors of RAM and state, the hardware both belong to, what is left to do in it.

    `reseed`: its agent renews the kernel's random numbers.
    """

    template: str
    image: str
    hardware: Hardware
    memory_fd: int
    state_fd: int
    thaw: Thaw
    reseed: bool = True


def decide_aslr(config: VMConfig, accel: str) -> bool:
    """Whether programs of the guest start at random addresses.

    QEMU 7.2 finds translated code by its virtual address, so that a program at another address is translated from the
    start: `true` took 38 ms in place of 13 (measured side by side), and left 1.3 MB of code behind each time.
    """
    return config.aslr == "on" or (config.aslr == "auto" and accel != "tcg")


async def boot_base(plan: BootPlan, *, places: Places, memory_fd: int | None = None, watched: bool = False) -> BaseVM:
    """A machine that was booted as planned and whose agent answers. With `memory_fd`, its RAM is in that file.

    Raises `LaunchError` when it does not come up within the configuration's `boot_timeout_s`. Nothing is left then.
    `watched`: a guest that QEMU stops, or that stands still, is noticed as well, at the cost of a monitor and of a
    console that tells more.
    """
    image = plan.image
    aslr = "" if decide_aslr(plan.config, plan.hardware.accel) else " norandmaps"
    verbose = f" {_VERBOSE}" if watched else ""  # the last of two holds
    board = await board_args(plan.hardware)
    arguments = f"{KERNEL_ARGS}{aslr}{verbose}{board}{_room_to_grow(plan.hardware)} {plan.config.kernel_args}".rstrip()
    return await _launch(
        Identity.fresh(new_vm_id(), reseed=plan.config.reseed in ("both", "agent")),
        plan.binary,
        plan.hardware,
        AnonymousRAM() if memory_fd is None else SharedRAM(memory_fd),
        Boot(kernel=image.kernel, initramfs=image.initramfs, command_line=arguments),
        image=image.name,
        places=places,
        boot_timeout_s=plan.config.boot_timeout_s,
        watched=watched,
        memory_hint=_memory_hint(image, plan.hardware),
    )


async def restore_base(frozen: Frozen, *, binary: QemuBinary, places: Places) -> BaseVM:
    """A machine that goes on where `frozen` stopped as soon as QEMU has loaded it, which is not waited for."""
    return await _launch(
        Identity.fresh(new_vm_id(), template=frozen.template, reseed=frozen.reseed),
        binary,
        frozen.hardware,
        ForkedRAM(frozen.memory_fd),
        Restore(frozen.state_fd),
        image=frozen.image,
        places=places,
        todo=frozen.thaw,
    )


async def _launch(
    identity: Identity,
    binary: QemuBinary,
    hardware: Hardware,
    ram: RAM,
    start: Boot | Restore,
    *,
    image: str,
    places: Places,
    boot_timeout_s: float = 0.0,
    watched: bool = False,
    memory_hint: str = "",
    todo: Thaw | None = None,
) -> BaseVM:
    begun = time.perf_counter()
    _sweep_once(places.vms)
    async with AsyncExitStack() as on_failure:
        folder = VMFolder.create(places.vms, identity.vm_id)
        on_failure.callback(folder.close)
        machine = QemuMachine.start(
            binary,
            Launch(
                name=f"vmfork-{identity.vm_id}",
                folder=folder.path,
                hardware=hardware,
                ram=ram,
                start=start,
                generation_id=str(identity.generation),
                lock_fd=folder.lock_fd,
            ),
        )
        on_failure.push_async_callback(machine.aclose)
        spawned = time.perf_counter()
        # Loaded the first time, while QEMU starts: 15 ms that nobody waits for (docs/decisions/0008).
        from vmfork.agent.client import AgentClient  # noqa: PLC0415
        from vmfork.machine.base import BaseVM  # noqa: PLC0415
        from vmfork.machine.ending import explained  # noqa: PLC0415
        from vmfork.machine.stall import unless_stuck  # noqa: PLC0415

        folder.write_record(_record(identity, machine, hardware, image))
        agent = await AgentClient.open(machine.connect_agent())
        on_failure.push_async_callback(agent.aclose)
        greeting = None
        if isinstance(start, Boot):
            async with explained(machine, agent, boot_timeout_s, memory_hint=memory_hint):
                hello = agent.hello(timeout_s=boot_timeout_s, take_over=False)
                greeting = await (unless_stuck(hello, machine) if watched else hello)
        on_failure.pop_all()
    return BaseVM(
        folder=folder,
        machine=machine,
        agent=agent,
        hardware=hardware,
        identity=identity,
        image=image,
        ram_inode=0 if isinstance(ram, AnonymousRAM) else os.fstat(ram.fd).st_ino,
        spawn_s=spawned - begun,
        answer_s=time.perf_counter() - spawned,
        greeting=greeting,
        todo=todo or Thaw(),
    )


def _memory_hint(image: Image, hardware: Hardware) -> str:
    least = image.min_memory_mib or 0
    more = least if hardware.memory_mib < least else hardware.memory_mib + hardware.memory_mib // 4
    return f"give it more than {format_mib(hardware.memory_mib)}, such as {format_mib(more)}"


def _room_to_grow(hardware: Hardware) -> str:
    # Nothing is said where nothing can grow: the guest boots as it always did.
    arguments = ""
    if hardware.max_cpus > hardware.cpus:
        # Code for several CPUs from the start, or the kernel rewrites it when the second comes: 0.2 s under TCG.
        arguments += f" maxcpus={hardware.cpus} noreplace-smp"
        if hardware.accel == "tcg":
            # Else each CPU that comes online is measured, 1 to 3 s, in vain. So many TSC ticks are a jiffy (250 Hz) at
            # 6 GHz: a delay in the guest's drivers may be longer than asked, never shorter. KVM tells its guest.
            arguments += " lpj=24000000"
    if hardware.max_memory_mib > hardware.memory_mib:
        # Memory that might come above 4 GiB makes the kernel set 64 MiB aside for devices that cannot reach it; here is
        # none. The least it takes is 1 MiB.
        arguments += " swiotlb=512"
    return arguments


def _record(identity: Identity, machine: Machine, hardware: Hardware, image: str) -> VMRecord:
    return VMRecord(
        id=identity.vm_id,
        pid=machine.identity.pid,
        start_ticks=machine.identity.start_ticks,
        owner_pid=os.getpid(),
        template=identity.template,
        image=image,
        accel=hardware.accel,
        cpus=hardware.cpus,
        memory_mib=hardware.memory_mib,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _sweep_once(vms: Path) -> None:
    """What dead owners left is gone. Once per process: it costs a few system calls for each live VM."""
    if vms not in _swept:
        _swept.add(vms)
        sweep_vms(vms)
