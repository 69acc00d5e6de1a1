"""The command line, argument by argument: what start, RAM, accelerator and version of QEMU change in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from vmfork.hypervisor.base import AnonymousRAM, Boot, ForkedRAM, Hardware, Launch, Link, Restore, Scratch, SharedRAM
from vmfork.hypervisor.qemu.binary import QemuBinary
from vmfork.hypervisor.qemu.board import board_for, board_of
from vmfork.hypervisor.qemu.command import Descriptors, build_command, choose_cpu_model, default_cpu_model

OLD = QemuBinary(path=Path("/opt/qemu"), version="7.2.22", release=(7, 2, 22), stamp="1")
NEW = QemuBinary(path=Path("/opt/qemu"), version="8.2.0", release=(8, 2, 0), stamp="2")
FDS = Descriptors(qmp=10, agent=11, console=12, kernel=13, initramfs=14, line=15)
TCG = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)
KVM = Hardware(machine="pc-q35-7.2", accel="kvm", cpu_model="host", cpus=2, memory_mib=512)
BOOT = Boot(kernel=Path("/images/kernel"), initramfs=Path("/images/initramfs"), command_line="console=ttyS0 quiet")
RESTORE = Restore(21)
LAUNCH = Launch(
    name="vmfork-0123",
    folder=Path("/run/vm"),
    hardware=TCG,
    ram=AnonymousRAM(),
    start=BOOT,
    generation_id="8d8a5c4e-9f3a-4d5e-8c65-2f3f3e6a0b11",
)

# fmt: off
BEGIN_TCG = [
    "/opt/qemu",
    "-name", "vmfork-0123",
    "-machine", "pc-q35-7.2,memory-backend=ram,usb=off,vmport=off,smbus=off,sata=off,graphics=off,smm=off,"
                "mem-merge=off,dump-guest-core=off,suppress-vmdesc=on",
    "-accel", "tcg,tb-size=256",
    "-cpu", "max",
    "-smp", "1",
    "-m", "256M",
]
BEGIN_KVM = [*BEGIN_TCG[:5], "-accel", "kvm", "-cpu", "host", "-smp", "2", "-m", "512M"]
MIDDLE = [
    "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
    "-rtc", "base=utc,clock=host",
    "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    "-chardev", "socket,id=qmp,fd=10,server=on,wait=off", "-mon", "chardev=qmp,mode=control",
    "-chardev", "socket,id=console,fd=12", "-serial", "chardev:console",
    "-device", "virtio-serial-pci,id=agents,disable-legacy=on,max_ports=2",
    "-chardev", "socket,id=agent,fd=11,server=on,wait=off",
    "-device", "virtserialport,bus=agents.0,nr=1,chardev=agent,name=vmfork.agent.0",
]
VMGENID = ["-device", "vmgenid,guid=8d8a5c4e-9f3a-4d5e-8c65-2f3f3e6a0b11"]
PLAIN_STATE = ["-global", "migration.send-configuration=off"]
BOOTED = ["-kernel", "/proc/self/fd/13", "-initrd", "/proc/self/fd/14", "-append", "console=ttyS0 quiet"]

BEGIN = {"tcg": (TCG, BEGIN_TCG, "256M"), "kvm": (KVM, BEGIN_KVM, "512M")}
RAMS = {
    ("anonymous", OLD): (AnonymousRAM(), "memory-backend-ram,id=ram,size={}"),
    ("anonymous", NEW): (AnonymousRAM(), "memory-backend-ram,id=ram,size={}"),
    ("shared", OLD): (SharedRAM(20), "memory-backend-file,id=ram,size={},mem-path=/proc/self/fd/20,share=on"),
    ("shared", NEW): (SharedRAM(20), "memory-backend-file,id=ram,size={},mem-path=/proc/self/fd/20,share=on"),
    ("forked", OLD): (ForkedRAM(20), "memory-backend-file,id=ram,size={},mem-path=/proc/self/fd/20,share=off"),
    # QEMU 8.2, docs/system/vm-templating.rst: the file is opened for reading, the mapping is private and writable.
    ("forked", NEW): (
        ForkedRAM(20), "memory-backend-file,id=ram,size={},mem-path=/proc/self/fd/20,share=off,readonly=on,rom=off"
    ),
}
STARTS = {
    ("boot", OLD): (BOOT, BOOTED),
    ("boot", NEW): (BOOT, BOOTED),
    ("restore", OLD): (RESTORE, ["-incoming", "fd:21"]),
    # QEMU 8.2, qapi/migration.json: a plain file goes through `file:`; `fd:` for one is deprecated from 9.1.
    ("restore", NEW): (RESTORE, ["-incoming", "file:/proc/self/fd/21"]),
}
# fmt: on


@pytest.mark.parametrize(
    ("binary", "accel", "ram", "start"),
    [*product((OLD, NEW), ("tcg", "kvm"), ("anonymous", "shared", "forked"), ("boot", "restore"))],
    ids=lambda value: value.version if isinstance(value, QemuBinary) else value,
)
def test_every_argument(binary, accel, ram, start) -> None:
    hardware, begin, size = BEGIN[accel]
    memory, backend = RAMS[ram, binary]
    source, end = STARTS[start, binary]
    launch = replace(LAUNCH, hardware=hardware, ram=memory, start=source)
    assert build_command(binary, launch, FDS) == [
        *begin, "-object", backend.format(size), *MIDDLE, *VMGENID, *PLAIN_STATE, *end
    ]  # fmt: skip


def test_memory_that_was_added_is_read_from_the_end_of_the_last_file() -> None:
    grown = replace(TCG, memory_mib=640, max_memory_mib=1024, added_mib=(256, 128))
    launch = replace(LAUNCH, hardware=grown, ram=ForkedRAM(20, 22), start=RESTORE)
    argv = build_command(OLD, launch, FDS)
    assert argv[argv.index("-m") + 1] == "256M,slots=6,maxmem=1024M"
    begin = argv.index("-object")
    file = "memory-backend-file,id={},size={}M,mem-path=/proc/self/fd/{},share=off"
    assert argv[begin : begin + 10] == [
        *("-object", file.format("ram", 256, 20)),
        *("-object", file.format("dimm-0-ram", 256, f"22@{256 << 20}")),
        *("-device", "pc-dimm,id=dimm-0,memdev=dimm-0-ram"),
        *("-object", file.format("dimm-1-ram", 128, f"22@{512 << 20}")),
        *("-device", "pc-dimm,id=dimm-1,memdev=dimm-1-ram"),
    ]


@pytest.mark.parametrize(
    ("release", "has"),
    [((7, 2, 0), False), ((8, 1, 99), False), ((8, 2, 0), True), ((9, 0, 0), True), ((10, 0, 2), True)],
)
def test_the_new_spelling_begins_with_8_2(release, has) -> None:
    binary = replace(OLD, release=release)
    argv = build_command(binary, replace(LAUNCH, ram=ForkedRAM(20), start=RESTORE), FDS)
    assert argv[-1].startswith("file:") == has
    assert argv[argv.index("-object") + 1].endswith("share=off,readonly=on,rom=off") == has


@pytest.mark.parametrize("start", [BOOT, RESTORE])
def test_a_microvm_has_its_port_without_pci_and_no_vmgenid(start) -> None:
    hardware = replace(TCG, machine="microvm", vmgenid=False)
    argv = build_command(OLD, replace(LAUNCH, hardware=hardware, start=start), FDS)
    options = argv[argv.index("-machine") + 1].split(",")
    assert options[0] == "microvm"
    # Options of the other board are refused by QEMU.
    assert not {"vmport=off", "smbus=off", "sata=off", "smm=off"} & set(options)
    assert [argument for argument in argv if "pci" in argument or "vmgenid" in argument] == []
    assert argv[argv.index("-device") + 1] == "virtio-serial-device,id=agents,max_ports=2"


@pytest.mark.parametrize(
    ("machine", "kind", "type_of_old"), [("pc-q35-7.2", "q35", "pc-q35-7.2"), ("microvm", "microvm", "microvm")]
)
def test_a_board_is_known_by_its_machine_type_and_back(machine, kind, type_of_old) -> None:
    board = board_of(machine)
    assert (board.kind, board.type_for(OLD), board_for(kind)) == (kind, type_of_old, board)
    assert board_for("auto") is board_for("q35")


@pytest.mark.parametrize("start", [BOOT, RESTORE])
def test_without_vmgenid_the_device_alone_is_missing(start) -> None:
    launch = replace(LAUNCH, start=start)
    without = build_command(OLD, replace(launch, hardware=replace(TCG, vmgenid=False)), FDS)
    assert [argument for argument in without if "vmgenid" in argument or LAUNCH.generation_id in argument] == []
    at = build_command(OLD, launch, FDS).index(VMGENID[1]) - 1
    assert without == [*build_command(OLD, launch, FDS)[:at], *build_command(OLD, launch, FDS)[at + 2 :]]


def test_one_that_was_built_without_a_sandbox_is_not_asked_for_it() -> None:
    assert "-sandbox" in build_command(OLD, LAUNCH, FDS)
    assert "-sandbox" not in build_command(replace(OLD, has_sandbox=False), LAUNCH, FDS)


def test_a_restored_machine_loads_no_kernel_and_is_not_held() -> None:
    argv = build_command(OLD, replace(LAUNCH, ram=ForkedRAM(20), start=RESTORE), FDS)
    assert {"-kernel", "-initrd", "-append", "-S"} & set(argv) == set()


def test_the_default_cpu_follows_the_accelerator() -> None:
    assert (default_cpu_model("kvm"), default_cpu_model("tcg")) == (
        "host,migratable=on",
        "max,la57=off,erms=off,fsrm=off",
    )
    assert [choose_cpu_model(asked, "kvm") for asked in ("", "EPYC")] == ["host,migratable=on", "EPYC"]


def test_a_portable_cpu_is_not_the_hosts_own() -> None:
    assert choose_cpu_model("portable", "tcg") == default_cpu_model("tcg")
    assert choose_cpu_model("portable", "kvm").partition(",")[0] == "qemu64"


@pytest.mark.parametrize("start", [BOOT, RESTORE])
def test_a_card_is_the_same_device_whatever_is_behind_it(start) -> None:
    mac = "02:00:00:00:00:01"
    device = f"virtio-net-pci,id=card,disable-legacy=on,romfile=,mac={mac}"
    quiet = ["-global", "migration.announce-rounds=0"]  # else the guest of one that is restored may stand still
    net = {
        "none": ["-device", device, *quiet],
        "restricted": ["-netdev", "user,id=user,ipv6=off,restrict=on", "-device", f"{device},netdev=user", *quiet],
        "open": ["-netdev", "user,id=user,ipv6=off,restrict=off", "-device", f"{device},netdev=user", *quiet],
        "passt": [
            *("-netdev", "stream,id=user,server=off,addr.type=fd,addr.str=15"),
            *("-device", f"{device},netdev=user", *quiet),
        ],
    }
    bare = replace(LAUNCH, start=start)
    plain = build_command(OLD, bare, FDS)
    for backend, added in net.items():
        command = build_command(OLD, replace(bare, link=Link(mac=mac, backend=backend)), FDS)
        at = command.index(device if backend == "none" else "-netdev") - (backend == "none")
        assert command[at : at + len(added)] == added
        assert command[:at] + command[at + len(added) :] == plain
    assert not any("net" in argument for argument in plain)


def test_a_card_of_the_other_board_needs_no_pci() -> None:
    launch = replace(LAUNCH, hardware=replace(TCG, machine="microvm"), link=Link(mac="02:00:00:00:00:01"))
    assert "virtio-net-device,id=card,mac=02:00:00:00:00:01" in build_command(OLD, launch, FDS)


@pytest.mark.parametrize("start", [BOOT, RESTORE])
def test_a_disk_is_read_by_its_descriptor_before_any_card(start) -> None:
    """The guest finds a card by the number of devices that come before it (image/recipe.py)."""
    bare = replace(LAUNCH, start=start, link=Link(mac="02:00:00:00:00:01"))
    plain, command = build_command(OLD, bare, FDS), build_command(OLD, replace(bare, disk_fd=23), FDS)
    at = command.index("-blockdev")
    file = "file.driver=file,file.filename=/proc/self/fd/23,file.locking=off"
    assert command[at : at + 4] == [
        *("-blockdev", f"driver=raw,node-name=root,read-only=on,{file}"),
        *("-device", "virtio-blk-pci,id=disk,disable-legacy=on,num-queues=1,write-cache=off,drive=root"),
    ]
    assert command[:at] + command[at + 4 :] == plain
    devices = [argument for argument in command if argument.startswith("virtio-")]
    assert [device.partition("-pci")[0] for device in devices] == ["virtio-serial", "virtio-blk", "virtio-net"]


@pytest.mark.parametrize("base", ["raw", "qcow2"])
@pytest.mark.parametrize("start", [BOOT, RESTORE])
def test_a_disk_that_is_written_is_the_last_of_the_devices(start, base) -> None:
    """All others are where they would be without, and the host's own disk is not waited for, nor does it stop QEMU."""
    bare = replace(LAUNCH, start=start, link=Link(mac="02:00:00:00:00:01"), disk_fd=23)
    scratch = Scratch(base_fd=24, base_format=base, own_fd=25)
    plain, command = build_command(OLD, bare, FDS), build_command(OLD, replace(bare, scratch=scratch), FDS)
    at = next(place for place, argument in enumerate(command) if "node-name=scratch-base" in argument) - 1
    assert command[at : at + 6] == [
        "-blockdev",
        f"driver={base},node-name=scratch-base,read-only=on,"
        "file.driver=file,file.filename=/proc/self/fd/24,file.locking=off",
        "-blockdev",
        "driver=qcow2,node-name=scratch,backing=scratch-base,discard=unmap,cache.no-flush=on,"
        "file.driver=file,file.filename=/proc/self/fd/25,file.locking=off,file.discard=unmap,file.cache.no-flush=on",
        "-device",
        "virtio-blk-pci,id=scratch,disable-legacy=on,num-queues=1,werror=report,rerror=report,drive=scratch",
    ]
    assert command[:at] + command[at + 6 :] == plain
    assert max(place for place, argument in enumerate(command) if argument.startswith("virtio-")) == at + 5


def test_a_disk_of_the_other_board_needs_no_pci() -> None:
    launch = replace(LAUNCH, hardware=replace(TCG, machine="microvm"), disk_fd=23)
    device = "virtio-blk-device,id=disk,num-queues=1,write-cache=off,drive=root"
    assert device in build_command(OLD, launch, FDS)
