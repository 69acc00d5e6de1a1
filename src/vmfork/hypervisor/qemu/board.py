"""What a machine is built on: the two boards of QEMU that vmfork knows, and what each needs and lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfork.config.values import MachineChoice, MachineKind
    from vmfork.hypervisor.qemu.binary import QemuBinary


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """`options` belong to `-machine`, `port` is the device that carries the agent's line, `card` that of a network,
    `disk` that of a root, `scratch` that of a disk which the guest writes to.

    `extra` is passed on as is.
    With `has_vmgenid` the guest learns from the machine that it is a fork (ACPI, device `vmgenid`). With `takes_memory`
    it can be given more while it runs, and with `takes_disk` a disk when it is restored, which its guest finds when it
    looks. With `keeps_time` it has a clock beside the TSC, by which the guest finds the TSC's rate and watches it. By
    `module`, which an image has to bring, the guest's kernel finds its devices. The kernel is told `kernel_args`.
    """

    kind: MachineKind
    options: tuple[str, ...]
    port: str
    card: str
    disk: str
    scratch: str
    extra: tuple[str, ...] = ()
    has_vmgenid: bool
    takes_memory: bool
    takes_disk: bool
    keeps_time: bool
    module: str = ""
    kernel_args: str = ""

    def type_for(self, binary: QemuBinary) -> str:
        """The machine type as QEMU names it. Device state is tied to it."""
        return f"pc-q35-{binary.release[0]}.{binary.release[1]}" if self.kind == "q35" else "microvm"


# Whatever a fork does not need is left out of either: each device costs set-up time and state in every fork. A balloon,
# reports of free pages, virtio-mem and vhost-user would also break the sharing of RAM, or its restore.
#
# `suppress-vmdesc`: a restore expects a description behind the state (migration/savevm.c, qemu_loadvm_state) unless
# this tells it that there is none, and `xen-save-devices-state` writes none.
# A disk of the host that is full is told to the guest. By default (`enospc`) the machine would stand still, without a
# word to anybody.
_SCRATCH = "num-queues=1,werror=report,rerror=report"

Q35 = Board(
    kind="q35",
    options=(
        "memory-backend=ram", "usb=off", "vmport=off", "smbus=off", "sata=off", "graphics=off", "smm=off",
        "mem-merge=off", "dump-guest-core=off", "suppress-vmdesc=on",
    ),
    port="virtio-serial-pci,id=agents,disable-legacy=on,max_ports=2",
    # Nothing boots from it: without `romfile=` QEMU opens a file for that.
    card="virtio-net-pci,id=card,disable-legacy=on,romfile=",
    disk="virtio-blk-pci,id=disk,disable-legacy=on,num-queues=1,write-cache=off",
    scratch=f"virtio-blk-pci,id=scratch,disable-legacy=on,{_SCRATCH}",
    has_vmgenid=True,
    takes_memory=True,
    takes_disk=True,
    keeps_time=True,
)  # fmt: skip

# No PCI: virtio over memory, where ACPI says (QEMU, hw/i386/acpi-microvm.c, which describes neither vmgenid nor slots
# for memory). Its type has no version; `qemu.version` is compared beside it.
MICROVM = Board(
    kind="microvm",
    options=(
        "memory-backend=ram", "usb=off", "graphics=off", "mem-merge=off", "dump-guest-core=off", "suppress-vmdesc=on",
        "auto-kernel-cmdline=off",
    ),
    port="virtio-serial-device,id=agents,max_ports=2",
    card="virtio-net-device,id=card",
    disk="virtio-blk-device,id=disk,num-queues=1,write-cache=off",
    scratch=f"virtio-blk-device,id=scratch,{_SCRATCH}",
    extra=("-global", "virtio-mmio.force-legacy=off"),
    has_vmgenid=False,
    takes_memory=False,
    takes_disk=False,
    keeps_time=False,
    module="virtio_mmio",
    # Else a guest that panics resets by way of the firmware, and one that was restored stood still there (QEMU 7.2).
    kernel_args="reboot=t",
)  # fmt: skip


BOARDS = (Q35, MICROVM)


def board_of(machine: str) -> Board:
    """The board of a machine type, such as `pc-q35-7.2` or `microvm`."""
    return MICROVM if machine == MICROVM.kind else Q35


def board_for(choice: MachineChoice) -> Board:
    """The board for what a configuration asks. `auto` is q35: see docs/decisions/0012."""
    return MICROVM if choice == "microvm" else Q35
