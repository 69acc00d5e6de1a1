"""From a configuration, or from frozen state, to a started machine, or to an error and nothing left."""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.admission.charge import Ticket
from vmfork.adopt.card import Card
from vmfork.adopt.identity import Identity
from vmfork.host.passt import find_passt
from vmfork.host.thread import in_thread
from vmfork.hypervisor.base import AnonymousRAM, Boot, ForkedRAM, Hardware, Launch, Restore, SharedRAM
from vmfork.hypervisor.qemu import QemuMachine
from vmfork.image import DiskStore
from vmfork.machine.addresses import hold_addresses
from vmfork.machine.allotment import allot
from vmfork.machine.facts import MachineFacts, Make
from vmfork.machine.folder import new_vm_id, sweep_vms
from vmfork.machine.isolation import decide_containment
from vmfork.machine.outlet import PASST_MIB, make_link
from vmfork.machine.room import charge_for, make_folder
from vmfork.machine.scratch import make_base, open_scratch
from vmfork.machine.traits import DISK, SCRATCH
from vmfork.units import format_mib

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.adopt.todo import Thaw
    from vmfork.config import CardChoice, Instance, Limits
    from vmfork.hypervisor.base import RAM, Scratch
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.image import Image
    from vmfork.machine.base import BaseVM, Watch
    from vmfork.machine.facts import Descent
    from vmfork.machine.folder import VMFolder
    from vmfork.machine.plan import Plan

# A watched boot adds this. Without it the kernel prints nothing between the firmware and the agent, for 1 s under TCG
# and more than 10 s under a nested KVM. While it unpacks the initramfs it prints nothing, but touches page after page.
# Of two levels on the command line the last one counts.
_VERBOSE = "loglevel=7"

_swept: set[Path] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """What a fork is made from: descriptors of RAM and state, the hardware both belong to, what is left to do in it.

    With `reseed` the fork's agent renews the kernel's random numbers. `limits` say how much of the host it may have.
    What the file `upper_fd` has lies over that of `memory_fd`, where it is given. With `is_live` the last of these is a
    running machine's copy, and no template's. `card` is what the fork's network card leads to, where its hardware has
    one; with `holds_user_network` QEMU's is in the state, and with `had_no_carrier` a card without a carrier may be. In
    `scratch_fd` is what was on the disk that the guest writes to, where its hardware has one. Where it has none,
    `disk_mib` is the size of one that the fork is given, with nothing on it; 0 is none.
    """

    template: str
    image: str
    hardware: Hardware
    memory_fd: int
    state_fd: int
    thaw: Thaw
    limits: Limits
    make: Make
    descent: Descent
    upper_fd: int | None = None
    is_live: bool = False
    reseed: bool = True
    card: CardChoice = "none"
    holds_user_network: bool = False
    had_no_carrier: bool = False
    scratch_fd: int | None = None
    disk_mib: int = 0


async def boot_base(
    plan: Plan, *, instance: Instance, memory_fd: int | None = None, watch: Watch | None = None
) -> BaseVM:
    """A machine that was booted as planned and whose agent answers. With `memory_fd`, its RAM is in that file.

    Raises `NoRoom` when the host has none for it, and `LaunchError` when it does not come up within the plan's limit.
    Nothing is left then. `watch` looks at the guest while it boots; it costs a monitor, and a console that tells more.
    """
    image = plan.image
    verbose = "" if watch is None else f" {_VERBOSE}"
    make = Make(traits=plan.traits, qemu_path=str(plan.binary.path), qemu_stamp=plan.binary.stamp, policy=plan.policy)
    with ExitStack() as opened:
        base = await _launch(
            MachineFacts(
                identity=Identity.fresh(new_vm_id(), reseed=plan.reseed),
                hardware=plan.hardware,
                image=image.name,
                make=make,
                card=Card.draw("none") if plan.hardware.nic else None,
            ),
            plan.binary,
            AnonymousRAM() if memory_fd is None else SharedRAM(memory_fd),
            Boot(kernel=image.kernel, initramfs=image.initramfs, command_line=plan.command_line + verbose),
            limits=plan.limits,
            instance=instance,
            scratch_fd=await _make_scratch(plan.hardware, instance, opened),
        )
    hint = _memory_hint(image, plan.hardware)
    await base.greet(timeout_s=plan.boot_timeout_s, watch=watch, memory_hint=hint)
    return base


async def restore_base(frozen: Frozen, *, binary: QemuBinary, instance: Instance, in_place: bool = False) -> BaseVM:
    """A machine that goes on where `frozen` stopped, as soon as QEMU has loaded it. That is not waited for.

    With `in_place` it writes into the file that it reads its RAM from. Raises `NoRoom` when the host has none for it.
    """
    with ExitStack() as opened:
        frozen = await _add_disk(frozen, instance, opened)
        facts = MachineFacts(
            identity=Identity.fresh(new_vm_id(), template=frozen.template, reseed=frozen.reseed),
            hardware=frozen.hardware,
            image=frozen.image,
            descent=frozen.descent,
            make=frozen.make,
            card=_draw_card(frozen, frozen.card, holds_user_network=frozen.holds_user_network),
        )
        return await _restore(facts, frozen, binary=binary, instance=instance, in_place=in_place)


async def bring_back(
    before: MachineFacts, frozen: Frozen, *, folder: VMFolder, binary: QemuBinary, instance: Instance
) -> BaseVM:
    """As `restore_base`, in the place of the machine of these facts, which has ended: all that it was is in `folder`.

    Its id is the same, and what its starter gave it, where its card leads too; its identity is new. It is promised what
    its hardware needs now.
    """
    facts = replace(
        before,
        identity=Identity.fresh(before.identity.vm_id, template=before.identity.template, reseed=frozen.reseed),
        hardware=frozen.hardware,
        make=frozen.make,
        card=before.card and _draw_card(frozen, before.card.choice, holds_user_network=before.card.holds_user_network),
    )
    return await _restore(facts, frozen, binary=binary, instance=instance, folder=folder)


async def _restore(
    facts: MachineFacts,
    frozen: Frozen,
    *,
    binary: QemuBinary,
    instance: Instance,
    folder: VMFolder | None = None,
    in_place: bool = False,
) -> BaseVM:
    return await _launch(
        facts,
        binary,
        SharedRAM(frozen.memory_fd) if in_place else ForkedRAM(frozen.memory_fd, frozen.upper_fd),
        Restore(frozen.state_fd),
        limits=frozen.limits,
        instance=instance,
        layer_fd=(frozen.memory_fd if frozen.upper_fd is None else frozen.upper_fd) if frozen.is_live else None,
        todo=frozen.thaw,
        folder=folder,
        scratch_fd=frozen.scratch_fd,
    )


async def _launch(
    facts: MachineFacts,
    binary: QemuBinary,
    ram: RAM,
    start: Boot | Restore,
    *,
    limits: Limits,
    instance: Instance,
    layer_fd: int | None = None,
    todo: Thaw | None = None,
    folder: VMFolder | None = None,
    scratch_fd: int | None = None,
) -> BaseVM:
    begun = time.perf_counter()
    assert facts.make is not None  # each caller knows how
    identity, hardware, vms, policy = facts.identity, facts.hardware, instance.places.vms, facts.make.policy
    is_open = facts.card is not None and facts.card.backend == "open"
    containment = await decide_containment(binary, policy, places=instance.places, outward=is_open)
    passt = await find_passt() if facts.card is not None and facts.card.backend == "passt" else None
    _sweep_once(vms)
    async with AsyncExitStack() as on_failure:
        beside_mib = 0 if passt is None else PASST_MIB
        charge = charge_for(hardware, ram, limits).grown(beside_mib)
        if folder is None:
            folder = await make_folder(vms, identity.vm_id, charge, limits)
        else:
            folder.clear()
            folder.write_ticket(Ticket(charge=charge, limits=limits))
        on_failure.callback(folder.close)
        if facts.card is not None:
            facts = replace(facts, card=await hold_addresses(folder, facts.card))
        link = None if facts.card is None else make_link(facts.card, passt)
        groups = folder.make_groups(
            containment.groups, allot(hardware, cpu_weight=policy.cpu_weight, beside_mib=beside_mib)
        )
        with ExitStack() as opened:
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
                    containment=containment,
                    groups=groups,
                    link=link,
                    disk_fd=_open_disk(facts, instance, opened),
                    scratch=_open_scratch(facts, scratch_fd, instance, opened),
                ),
            )
        on_failure.push_async_callback(machine.aclose)
        spawned = time.perf_counter()
        # All that comes after the spawn is loaded the first time while QEMU starts: 15 ms that nobody waits for
        # (docs/decisions/0008).
        from vmfork.machine.base import BaseVM  # noqa: PLC0415

        facts = replace(
            facts,
            ram_inode=0 if isinstance(ram, AnonymousRAM) else os.fstat(ram.fd).st_ino,
            upper_inode=os.fstat(upper).st_ino if (upper := _upper_of(ram)) is not None else 0,
            layer_bytes=0 if layer_fd is None else os.fstat(layer_fd).st_blocks * 512,
            isolation=containment.isolation,
            outlet=machine.outlet,
        )
        base = await BaseVM.meet(facts, folder=folder, machine=machine, spawn_s=spawned - begun, todo=todo)
        on_failure.pop_all()
    base.answer_s = time.perf_counter() - spawned
    return base


def _draw_card(frozen: Frozen, choice: CardChoice, *, holds_user_network: bool) -> Card | None:
    if not frozen.hardware.nic:
        return None
    return Card.draw(choice, holds_user_network=holds_user_network, had_no_carrier=frozen.had_no_carrier)


def _open_disk(facts: MachineFacts, instance: Instance, opened: ExitStack) -> int | None:
    """The disk that the machine's state belongs to, and no other. Raises `ImageCorrupt` when it is not there."""
    sha256 = facts.make.traits.get(DISK) if facts.make is not None else None
    if sha256 is None:
        return None
    return opened.enter_context(DiskStore(instance.places.disks).opened(sha256, image=facts.image))


async def _add_disk(frozen: Frozen, instance: Instance, opened: ExitStack) -> Frozen:
    """The same, of machines that have the disk which is asked for.

    QEMU takes state that has nothing of a device (migration/savevm.c asks for no section of any): that device is as it
    is after a reset, on the bus, and the guest finds it when its kernel is told to look.
    """
    if not frozen.disk_mib:
        return frozen
    hardware = replace(frozen.hardware, scratch_mib=frozen.disk_mib)
    return replace(
        frozen,
        hardware=hardware,
        scratch_fd=await _make_scratch(hardware, instance, opened),
        thaw=replace(frozen.thaw, disk_mib=frozen.disk_mib),
        make=replace(frozen.make, traits={**frozen.make.traits, SCRATCH: str(frozen.disk_mib)}),
    )


async def _make_scratch(hardware: Hardware, instance: Instance, opened: ExitStack) -> int | None:
    """What a machine finds on the disk that it writes to, where it has one, and nothing was on it before."""
    if not hardware.scratch_mib:
        return None
    fd = await in_thread(lambda _: make_base(instance.places.disks, hardware.scratch_mib))
    opened.callback(os.close, fd)
    return fd


def _open_scratch(facts: MachineFacts, base_fd: int | None, instance: Instance, opened: ExitStack) -> Scratch | None:
    size_mib = facts.hardware.scratch_mib
    if not size_mib:
        return None
    assert base_fd is not None  # it was frozen with the machine
    return open_scratch(base_fd, instance.places.disks, size_mib, opened)


def _upper_of(ram: RAM) -> int | None:
    return ram.upper_fd if isinstance(ram, ForkedRAM) else None


def _memory_hint(image: Image, hardware: Hardware) -> str:
    least = image.min_memory_mib or 0
    more = least if hardware.memory_mib < least else hardware.memory_mib + hardware.memory_mib // 4
    return f"give it more than {format_mib(hardware.memory_mib)}, such as {format_mib(more)}"


def _sweep_once(vms: Path) -> None:
    """What dead owners left is gone. Once per process: it costs a few system calls for each live VM."""
    if vms not in _swept:
        _swept.add(vms)
        sweep_vms(vms)
