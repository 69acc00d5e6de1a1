"""A template and an emulator that was replaced since: the field that differs is named, with both values."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest

from vmfork.config import VMConfig
from vmfork.errors import TemplateStale
from vmfork.host import facts
from vmfork.hypervisor.base import Hardware
from vmfork.hypervisor.qemu import QemuBinary, board_for, find_qemu, find_qemu_like
from vmfork.machine import plan
from vmfork.machine.plan import make_plan
from vmfork.machine.traits import DISK, emulator_traits, image_traits, wanted_traits
from vmfork.store import Manifest

OLD, NEW = "7.2.22 (Debian 1:7.2+dfsg-7)", "9.2.0 (Debian 1:9.2.0+ds-1)"


@pytest.fixture
def qemu(tmp_path):
    """Puts an emulator of that version in place, always under the same path."""

    def install(version: str) -> str:
        new, path = tmp_path / "new", tmp_path / "qemu"
        new.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version}'\n")
        new.chmod(0o755)
        new.rename(path)
        return str(path)

    return install


def hardware_of(binary: QemuBinary, accel: str = "tcg", cpu_model: str = "max") -> Hardware:
    return Hardware(machine=board_for("q35").type_for(binary), accel=accel, cpu_model=cpu_model, cpus=1, memory_mib=256)


def manifest_of(traits: dict[str, str]) -> Manifest:
    blank = {"str": "", "int": 0, "bool": False, "Mapping[str, str]": {}}
    needed = {field.name: blank[str(field.type)] for field in fields(Manifest) if str(field.type) in blank}
    return Manifest(
        **{**needed, "name": "py", "traits": traits, "format": Manifest.__dataclass_fields__["format"].default}
    )


async def test_an_upgraded_emulator_is_named(qemu) -> None:
    path = qemu(OLD)
    frozen_on = await find_qemu(path)
    hardware = hardware_of(frozen_on)
    manifest = manifest_of(emulator_traits(hardware, frozen_on))

    async def check() -> None:
        found = await find_qemu_like(path, OLD, frozen_on.stamp, configured=path)
        manifest.check_traits(emulator_traits(hardware, found))

    await check()
    qemu(NEW)
    with pytest.raises(TemplateStale) as stale:
        await check()
    assert (stale.value.name, stale.value.field) == ("py", "qemu.version")
    assert (stale.value.have, stale.value.want) == (OLD, NEW)
    assert "replace=True" in stale.value.hint


async def test_under_kvm_another_cpu_is_named(qemu, monkeypatch) -> None:
    """A guest that was booted on one CPU uses features of it for good. A model that is not the host's own may move."""
    binary = await find_qemu(qemu(OLD))
    own, named = (hardware_of(binary, "kvm", model) for model in ("host", "EPYC-v2"))
    frozen = [manifest_of(emulator_traits(hardware, binary)) for hardware in (own, named)]
    monkeypatch.setattr(facts, "cpu_name", lambda: "Another CPU (6-1-1, flags 0)")
    with pytest.raises(TemplateStale) as stale:
        frozen[0].check_traits(emulator_traits(own, binary))
    assert (stale.value.field, stale.value.want) == ("host_cpu", "Another CPU (6-1-1, flags 0)")
    frozen[1].check_traits(emulator_traits(named, binary))


async def test_another_file_of_the_same_version_fits(qemu) -> None:
    path = qemu(OLD)
    frozen_on = await find_qemu(path)
    qemu(OLD)
    found = await find_qemu_like(path, OLD, frozen_on.stamp, configured=path)
    assert found.stamp != frozen_on.stamp
    hardware = hardware_of(frozen_on)
    manifest_of(emulator_traits(hardware, frozen_on)).check_traits(emulator_traits(hardware, found))


@pytest.mark.parametrize("asked", ["both", "agent", "none"])
async def test_who_reseeds_is_told_as_far_as_the_machine_has_it(qemu, asked, monkeypatch) -> None:
    monkeypatch.setattr(plan, "check_clock", lambda _hardware: None)
    monkeypatch.setattr(plan, "board_args", no_args)
    binary = await find_qemu(qemu(OLD))
    image = SimpleNamespace(kernel_sha256="k", initramfs_sha256="i", disk_sha256="", init="", kernel_release="6.12.118")
    for machine, in_force in (("q35", asked), ("microvm", "agent" if asked == "both" else asked)):
        config = VMConfig(machine=machine, reseed=asked)
        made = await make_plan(config, image=image, binary=binary, accel="tcg")
        assert made.traits["reseed"] == in_force
        assert wanted_traits(config, machine=made.hardware.machine, accel="tcg")["reseed"] == in_force
        assert made.hardware.vmgenid == (in_force == "both")
        assert made.reseed == (asked != "none")


async def no_args(_hardware) -> str:
    return ""


@pytest.mark.parametrize(
    ("asked", "have", "wanted"),
    [
        ("auto", "pc-q35-7.2", None),
        ("auto", "microvm", None),
        ("q35", "pc-q35-7.2", "pc-q35-7.2"),
        ("q35", "microvm", "q35"),
        ("microvm", "microvm", "microvm"),
        ("microvm", "pc-q35-10.0", "microvm"),
    ],
)
def test_the_kind_of_machine_is_compared_where_it_was_chosen(asked, have, wanted) -> None:
    assert wanted_traits(VMConfig(machine=asked), machine=have, accel="tcg").get("machine") == wanted


def test_a_card_is_a_trait_of_a_template() -> None:
    wanted = [wanted_traits(VMConfig(nic=nic), machine="pc-q35-7.2", accel="tcg")["nic"] for nic in (False, True)]
    assert wanted == ["off", "on"]


def test_the_size_of_a_disk_is_a_trait_of_a_template() -> None:
    wanted = [wanted_traits(VMConfig(disk_mib=size), machine="pc-q35-7.2", accel="tcg")["disk_mib"] for size in (0, 64)]
    assert wanted == ["0", "64"]


def test_a_disk_is_a_trait_of_machines_that_have_one():
    without = SimpleNamespace(kernel_sha256="k", initramfs_sha256="i", disk_sha256="")
    on_disk = SimpleNamespace(kernel_sha256="k", initramfs_sha256="i", disk_sha256="d")
    assert DISK not in image_traits(without)
    assert image_traits(on_disk) == image_traits(without) | {DISK: "d"}
