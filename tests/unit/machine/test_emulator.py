"""Which emulator is taken: a configured one wins, the slim one is for KVM, and one that lacks something is told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmfork.config import Places, VMConfig
from vmfork.errors import ConfigError, HostError
from vmfork.hypervisor.qemu import Abilities, QemuBinary
from vmfork.machine import emulator
from vmfork.machine.emulator import SLIM, choose_emulator, find_emulator, find_emulator_like, find_slim, list_openers
from vmfork.machine.plan import make_hardware

VERSION = "7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)"
FULL_PATH, SLIM_PATH = "/usr/bin/qemu-system-x86_64", f"/usr/bin/{SLIM}"
PCI = ("pc-dimm", "virtio-serial-device", "virtio-serial-pci", "virtserialport", "vmgenid")
MMIO = ("virtio-serial-device", "virtserialport")


class Host:
    """Emulators by path, and what each was built with."""

    def __init__(self, tmp_path: Path) -> None:
        self.places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
        self.binaries: dict[str, QemuBinary] = {}
        self.abilities: dict[str, Abilities] = {}
        self.seen_like: list[str] = []
        self.install(FULL_PATH, devices=PCI, accels=("kvm", "tcg"))

    def install(self, path, *, devices, accels, version=VERSION, machines=("pc-q35-7.2", "microvm"), has_sandbox=True):
        self.binaries[path] = QemuBinary(path=Path(path), version=version, release=(7, 2, 22), stamp=path)
        self.abilities[path] = Abilities(
            machines=machines, devices=devices, accels=accels, has_sandbox=has_sandbox, has_user_network=True
        )

    async def find_qemu(self, configured: str = "") -> QemuBinary:
        return self.binaries[configured or FULL_PATH]

    async def find_qemu_like(self, path, version, stamp, *, configured="") -> QemuBinary:
        self.seen_like.append(configured)
        return await self.find_qemu(configured)

    async def ask_abilities(self, binary, *, kept) -> Abilities:
        assert kept == self.places.emulators
        return self.abilities[str(binary.path)]

    async def decide(self, config: VMConfig, accel: str) -> QemuBinary:
        """As a plan does, with the accelerator decided."""
        binary = await find_emulator(config, places=self.places)
        return await choose_emulator(config, binary, accel=accel, places=self.places)


@pytest.fixture
def host(tmp_path, monkeypatch) -> Host:
    host = Host(tmp_path)
    for name in ("find_qemu", "find_qemu_like", "ask_abilities"):
        monkeypatch.setattr(emulator, name, getattr(host, name))
    monkeypatch.setattr(emulator.shutil, "which", lambda name: SLIM_PATH if SLIM_PATH in host.binaries else None)
    return host


@pytest.fixture
def slim(host) -> Host:
    """A host with a slim emulator that has all that a microvm needs."""
    host.install(SLIM_PATH, devices=MMIO, accels=("kvm", "qtest"))
    return host


@pytest.mark.parametrize(
    ("machine", "accel", "taken"),
    [
        ("microvm", "kvm", SLIM_PATH),
        ("microvm", "tcg", FULL_PATH),
        ("q35", "kvm", FULL_PATH),  # its port is a PCI device
        ("auto", "kvm", FULL_PATH),
    ],
)
async def test_the_slim_one_is_taken_under_kvm_where_it_has_everything(slim, machine, accel, taken) -> None:
    assert str((await slim.decide(VMConfig(machine=machine), accel)).path) == taken


async def test_a_slim_one_with_pci_would_start_a_q35_too(host) -> None:
    host.install(SLIM_PATH, devices=PCI, accels=("kvm",))
    assert str((await host.decide(VMConfig(max_memory_mib=512), "kvm")).path) == SLIM_PATH


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        ({"devices": ()}, "no device virtio-serial-device, no device virtserialport"),
        ({"machines": ("none",)}, "no machine microvm"),
        ({"version": "10.0.2"}, f"no version {VERSION}"),
    ],
)
async def test_a_slim_one_that_lacks_something_is_left_and_told_why(host, change, lack) -> None:
    host.install(SLIM_PATH, **{"devices": MMIO, "accels": ("kvm",), **change})
    config = VMConfig(machine="microvm")
    assert str((await host.decide(config, "kvm")).path) == FULL_PATH
    full = host.binaries[FULL_PATH]
    candidate = await find_slim(make_hardware(config, binary=full, accel="kvm"), full, places=host.places)
    assert candidate.lack == f"{SLIM_PATH} has {lack}"


@pytest.mark.parametrize(
    ("config", "accel", "version", "openers"),
    [
        (VMConfig(machine="microvm"), "kvm", VERSION, [FULL_PATH, SLIM_PATH]),
        (VMConfig(machine="microvm"), "tcg", VERSION, [FULL_PATH]),
        (VMConfig(), "kvm", VERSION, [FULL_PATH]),
        (VMConfig(), "kvm", "10.0.2", []),
    ],
)
async def test_which_open_what_was_frozen(slim, config, accel, version, openers) -> None:
    hardware = make_hardware(config, binary=slim.binaries[FULL_PATH], accel=accel)
    found = await list_openers(hardware, version, places=slim.places)
    assert [str(binary.path) for binary in found] == openers


async def test_the_configured_one_wins(slim) -> None:
    for path in (SLIM_PATH, FULL_PATH):
        assert str((await slim.decide(VMConfig(machine="microvm", qemu=path), "kvm")).path) == path


async def test_one_without_a_sandbox_is_known_as_that_however_it_is_found(slim) -> None:
    slim.install(SLIM_PATH, devices=MMIO, accels=("kvm",), has_sandbox=False)
    config = VMConfig(machine="microvm")
    for binary in (
        await slim.decide(config, "kvm"),
        await find_emulator_like(SLIM_PATH, VERSION, "stamp", places=slim.places),
    ):
        assert (str(binary.path), binary.has_sandbox) == (SLIM_PATH, False)
    assert (await slim.decide(config, "tcg")).has_sandbox


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "no device virtio-serial-pci"),
        ({"machine": "microvm", "accel": "tcg"}, "no accelerator tcg"),
    ],
)
async def test_a_configured_one_that_lacks_something_is_refused_by_name(slim, asked, said) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        await find_emulator(VMConfig(qemu=SLIM_PATH, **asked), places=slim.places)
    assert (refused.value.field, refused.value.value) == ("vm.qemu", SLIM_PATH)


async def test_a_configured_one_for_kvm_alone_is_refused_where_kvm_does_not_run(slim) -> None:
    with pytest.raises(ConfigError, match="no accelerator tcg"):
        await slim.decide(VMConfig(machine="microvm", qemu=SLIM_PATH), "tcg")


async def test_a_host_whose_emulator_lacks_something_is_told_so(host) -> None:
    host.install(FULL_PATH, devices=MMIO, accels=("tcg",))
    with pytest.raises(HostError, match=f"{FULL_PATH} has no device virtio-serial-pci, no device vmgenid"):
        await find_emulator(VMConfig(), places=host.places)


@pytest.mark.parametrize(
    ("frozen_by", "configured", "looked_for"),
    [
        (FULL_PATH, "", ""),
        (SLIM_PATH, "", SLIM_PATH),
        (SLIM_PATH, FULL_PATH, FULL_PATH),
        (FULL_PATH, SLIM_PATH, SLIM_PATH),
    ],
)
async def test_a_template_is_opened_by_what_froze_it_unless_another_is_configured(
    slim, frozen_by, configured, looked_for
) -> None:
    await find_emulator_like(frozen_by, VERSION, "stamp", configured=configured, places=slim.places)
    assert slim.seen_like == [looked_for]


async def test_what_a_slim_one_froze_is_opened_by_the_full_one_where_it_is_gone(host) -> None:
    opened = await find_emulator_like(SLIM_PATH, VERSION, "stamp", places=host.places)
    assert str(opened.path) == FULL_PATH


async def test_one_of_another_version_is_not_asked_for_more(host) -> None:
    host.install("/opt/new", devices=PCI, accels=("tcg",), version="10.0.2")
    del host.abilities["/opt/new"]
    opened = await find_emulator_like(FULL_PATH, VERSION, "stamp", configured="/opt/new", places=host.places)
    assert opened.version == "10.0.2"


async def test_a_slim_one_that_does_not_run_stands_in_nobodys_way(slim, monkeypatch) -> None:
    async def find_qemu(configured: str = "") -> QemuBinary:
        if configured == SLIM_PATH:
            raise HostError("it hangs")
        return slim.binaries[FULL_PATH]

    monkeypatch.setattr(emulator, "find_qemu", find_qemu)
    assert str((await slim.decide(VMConfig(machine="microvm"), "kvm")).path) == FULL_PATH
