"""A launch as a QEMU command line. Pure: no file is touched, nothing is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.config.values import MEMORY_BLOCK_MIB
from vmfork.hypervisor.base import AnonymousRAM, Boot, ForkedRAM, Hardware, Launch, SharedRAM
from vmfork.hypervisor.qemu.board import board_of
from vmfork.units import MIB

if TYPE_CHECKING:
    from vmfork.hypervisor.qemu.binary import QemuBinary
    from vmfork.hypervisor.qemu.board import Board

# The guest finds its agent's port by this name (docs/reference/wire.md).
AGENT_PORT = "vmfork.agent.0"
# What QEMU's monitor calls the disk that the guest writes to.
SCRATCH = "scratch"

# Nothing here runs programs, changes users or sets limits; a QEMU taken over by its guest cannot either.
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# Under TCG, the code that QEMU keeps translated; beyond, it throws all away and begins anew. Its default is 1 GiB
# (docs/decisions/0027).
TRANSLATED_MIB = 256
# What QEMU itself takes, measured at 40 to 60 MiB, with room for devices that are added and answers of its monitor.
_OWN_MIB = 128

PORTABLE = "portable"
# Without nested virtualisation, which half of the processors call otherwise.
_PORTABLE_KVM = "qemu64,svm=off,ssse3=on,sse4.1=on,sse4.2=on,popcnt=on"

# Each is a piece of memory that can be added, and costs every machine a part of its ACPI tables.
MEMORY_SLOTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """Numbers of the descriptors that QEMU inherits: two listening sockets and a connected one for the console.

    Where it boots, kernel and initramfs too: QEMU need not be able to reach the files. `line` is that of a card that
    leads out by passt.
    """

    qmp: int
    agent: int
    console: int
    kernel: int = -1
    initramfs: int = -1
    line: int = -1


def default_cpu_model(accel: str) -> str:
    """The CPU a guest sees where none was asked for.

    Under KVM it is the host's own, without what cannot be saved and restored, such as an invariant TSC
    (docs/system/cpu-models-x86: `migratable`). Under TCG it is all that QEMU can do but for three features. With la57
    the guest's page tables have a fifth level, which QEMU walks in software, and programs took 4 % longer. With erms
    and fsrm a guest copies and clears memory byte by byte, since a processor is quick at that: QEMU 7.2 translates it
    to a loop, and a file took twice as long on its way out (docs/decisions/0008).
    """
    return "host,migratable=on" if accel == "kvm" else "max,la57=off,erms=off,fsrm=off"


def choose_cpu_model(asked: str, accel: str) -> str:
    """The CPU a guest sees where `asked` was asked for: a QEMU model, nothing, or `portable`.

    `portable` is the same on every host with the same QEMU. Under TCG the default is. Under KVM it has what x86-64-v2
    asks for and no more, which every processor since about 2009 has (docs/system/cpu-models-x86, `qemu64` and up).
    """
    if asked == PORTABLE:
        asked = _PORTABLE_KVM if accel == "kvm" else ""
    return asked or default_cpu_model(accel)


def most_memory_mib(hardware: Hardware) -> int:
    """The most memory that QEMU takes beside its guest's RAM, in MiB.

    In numbers: its own; page tables and what KVM keeps of the guest's pages, a 32nd of the RAM (8 bytes for 4 KiB, four
    times over); under TCG the translated code.
    """
    code_mib = TRANSLATED_MIB if hardware.accel == "tcg" else 0
    return _OWN_MIB + hardware.max_memory_mib // 32 + code_mib


def build_command(binary: QemuBinary, launch: Launch, fds: Descriptors) -> list[str]:
    """The arguments, program first."""
    board = board_of(launch.hardware.machine)
    return [
        str(binary.path),
        *("-name", launch.name),
        *_hardware(launch.hardware, board),
        *("-object", _ram(binary, launch)),
        *_added(binary, launch),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-rtc", "base=utc,clock=host"),
        # Its keeper confines it too, more than this does (keeper/confine.c).
        *(("-sandbox", SANDBOX) if binary.has_sandbox else ()),
        *("-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={fds.console}", "-serial", "chardev:console"),
        *("-device", board.port),
        *("-chardev", f"socket,id=agent,fd={fds.agent},server=on,wait=off"),
        *("-device", f"virtserialport,bus=agents.0,nr=1,chardev=agent,name={AGENT_PORT}"),
        *_disk(launch, board),
        *(("-device", f"vmgenid,guid={launch.generation_id}") if launch.hardware.vmgenid else ()),
        *_card(launch, board, fds),
        *_scratch(launch, board),
        *board.extra,
        # State is read without the configuration section, so that what a stock QEMU writes for `xen-save-devices-state`
        # is accepted by its `-incoming`.
        *("-global", "migration.send-configuration=off"),
        *_start(binary, launch, fds),
    ]


def _hardware(hardware: Hardware, board: Board) -> list[str]:
    return [
        *("-machine", ",".join((hardware.machine, *board.options))),
        *("-accel", f"tcg,tb-size={TRANSLATED_MIB}" if hardware.accel == "tcg" else hardware.accel),
        *("-cpu", hardware.cpu_model),
        # The kernel is told how many of them to bring online (machine/plan.py).
        *("-smp", str(hardware.max_cpus)),
        *("-m", _memory(hardware)),
    ]


def _memory(hardware: Hardware) -> str:
    booted_mib = hardware.base_memory_mib
    growth_mib = hardware.max_memory_mib - booted_mib
    if growth_mib == 0:
        return f"{booted_mib}M"
    slots = min(MEMORY_SLOTS, -(-growth_mib // MEMORY_BLOCK_MIB))
    return f"{booted_mib}M,slots={slots},maxmem={hardware.max_memory_mib}M"


def _ram(binary: QemuBinary, launch: Launch) -> str:
    # Never `prealloc=on`: it writes to every page, and all of a fork's RAM is private at once.
    size = f"id=ram,size={launch.hardware.base_memory_mib}M"
    match launch.ram:
        case AnonymousRAM():
            return f"memory-backend-ram,{size}"
        case SharedRAM(fd):
            return f"memory-backend-file,{size},mem-path=/proc/self/fd/{fd},share=on"
        case ForkedRAM(fd):
            return _forked(binary, f"{size},mem-path=/proc/self/fd/{fd}")


def _forked(binary: QemuBinary, backend: str) -> str:
    readonly = ",readonly=on,rom=off" if binary.opens_ram_readonly else ""
    return f"memory-backend-file,{backend},share=off{readonly}"


def _added(binary: QemuBinary, launch: Launch) -> list[str]:
    """The memory that had been added when the machine was frozen, in its order.

    QEMU gives each the place and the slot that it gave it then: the first that is free. The library beside QEMU reads
    where in the file it begins (preload/README.md).
    """
    if not isinstance(launch.ram, ForkedRAM):
        return []
    arguments, begins_mib, fd = [], launch.hardware.base_memory_mib, launch.ram.layers[-1]
    for number, size_mib in enumerate(launch.hardware.added_mib):
        path = f"/proc/self/fd/{fd}@{begins_mib * MIB}"
        backend = _forked(binary, f"id=dimm-{number}-ram,size={size_mib}M,mem-path={path}")
        arguments += ["-object", backend, "-device", f"pc-dimm,id=dimm-{number},memdev=dimm-{number}-ram"]
        begins_mib += size_mib
    return arguments


def _disk(launch: Launch, board: Board) -> list[str]:
    """The file that its root is on, opened for reading alone, and read through the host's page cache.

    One queue: as many as it has CPUs would be as much more memory, in each fork.
    """
    if launch.disk_fd is None:
        return []
    file = f"file.driver=file,file.filename=/proc/self/fd/{launch.disk_fd},file.locking=off"
    return [
        *("-blockdev", f"driver=raw,node-name=root,read-only=on,{file}"),
        *("-device", f"{board.disk},drive=root"),
    ]


def _scratch(launch: Launch, board: Board) -> list[str]:
    """The disk that the guest writes to. It is the last of its devices, so that the others are where they would be.

    What the guest gives back is given back to the host. What it wants to be safe on the disk is not waited for: the
    disk ends with its machine.
    """
    scratch = launch.scratch
    if scratch is None:
        return []
    base = f"file.driver=file,file.filename=/proc/self/fd/{scratch.base_fd},file.locking=off"
    own = f"file.driver=file,file.filename=/proc/self/fd/{scratch.own_fd},file.locking=off,file.discard=unmap"
    return [
        *("-blockdev", f"driver={scratch.base_format},node-name=scratch-base,read-only=on,{base}"),
        "-blockdev",
        f"driver=qcow2,node-name={SCRATCH},backing=scratch-base,discard=unmap,cache.no-flush=on,"
        f"{own},file.cache.no-flush=on",
        *("-device", f"{board.scratch},drive={SCRATCH}"),
    ]


def _card(launch: Launch, board: Board, fds: Descriptors) -> list[str]:
    """Its backend is that of one machine, and its device all machines of one kind have alike.

    Without a backend the state has nothing of one, and a machine that is restored from it may have any. With the user
    network it has a section that no other backend takes (QEMU 7.2: "Unknown savevm section 'slirp'").

    A machine that was restored has its guest announced by nobody but its agent. QEMU would have the guest do it, with
    an interrupt at once and more within half a second. Where the card was up and the agent takes it down meanwhile,
    Linux 6.12 stands still: the driver waits, with the lock of all cards, for the work that waits for that lock.
    """
    link = launch.link
    if link is None:
        return []
    device = f"{board.card},mac={link.mac}"
    quiet = ["-global", "migration.announce-rounds=0"]
    if link.backend == "none":
        return ["-device", device, *quiet]
    if link.backend == "passt":
        # A stream of frames, each behind its length; it leaves nothing in the state.
        line = f"stream,id=user,server=off,addr.type=fd,addr.str={fds.line}"
        return ["-netdev", line, "-device", f"{device},netdev=user", *quiet]
    # IPv6 would be a way that nobody looks at.
    restrict = "off" if link.backend == "open" else "on"
    return ["-netdev", f"user,id=user,ipv6=off,restrict={restrict}", "-device", f"{device},netdev=user", *quiet]


def _start(binary: QemuBinary, launch: Launch, fds: Descriptors) -> list[str]:
    start = launch.start
    if isinstance(start, Boot):
        kernel, initramfs = f"/proc/self/fd/{fds.kernel}", f"/proc/self/fd/{fds.initramfs}"
        return ["-kernel", kernel, "-initrd", initramfs, "-append", start.command_line]
    # No kernel and no initramfs: loading them again would cost each fork 12 to 20 MB of private memory. Without -S the
    # machine runs as soon as its state is loaded, and nobody has to tell it. `-incoming` is the only way: the monitor's
    # `xen-load-devices-state` crashes QEMU 7.2.
    source = f"file:/proc/self/fd/{start.state_fd}" if binary.incoming_is_file else f"fd:{start.state_fd}"
    return ["-incoming", source]
