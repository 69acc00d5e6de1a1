"""A plan for booting stands for as long as what it names: the image and the emulator of today."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import ImageCorrupt, ImageNotFound
from vmfork.factory import direct
from vmfork.factory.direct import DirectFactory
from vmfork.image import Image
from vmfork.machine.plan import Plan, make_plan


class World:
    """The image and the emulator that are here, and how often a boot was planned."""

    def __init__(self, tmp_path) -> None:
        self.places = Places(home=tmp_path, runtime=tmp_path)
        self.image: Image | Exception = Image(
            name="mine",
            recipe="0",
            bare=False,
            digest="1",
            kernel=tmp_path / "1" / "kernel",
            initramfs=tmp_path / "1" / "initramfs",
            kernel_release="6.12",
            kernel_sha256="k1",
            initramfs_sha256="i1",
            arch="x86_64",
            suite="trixie",
            requested=(),
            packages={},
            unpacked_bytes=1,
            created_at="",
            kernel_bytes=1,
            initramfs_bytes=1,
        )
        self.binary = SimpleNamespace(version="7.2.1", release=(7, 2, 1), stamp="1")
        self.planned = 0
        self.booted: list[Plan] = []

    async def prepare(self, config, _instance) -> Plan:
        self.planned += 1
        if isinstance(self.image, Exception):
            raise self.image
        image = replace(self.image, min_memory_mib=128)
        return await make_plan(config, image=image, binary=self.binary, accel="tcg")

    def open_image(self, _name, **_) -> Image:
        if isinstance(self.image, Exception):
            raise self.image
        return self.image

    async def find_qemu(self, _configured):
        return self.binary

    async def boot(self, plan, **_) -> None:
        self.booted.append(plan)


@pytest.fixture
def world(monkeypatch, tmp_path) -> World:
    world = World(tmp_path)
    for name, stand_in in (
        ("prepare", world.prepare),
        ("find_qemu", world.find_qemu),
        ("boot_base", world.boot),
    ):
        monkeypatch.setattr(direct, name, stand_in)
    monkeypatch.setattr(direct.ImageStore, "open", lambda _store, name: world.open_image(name))
    return world


async def opened(world: World) -> DirectFactory:
    return await DirectFactory.open(VMConfig(image="mine"), instance=Instance(world.places))


async def test_a_plan_is_made_once_while_nothing_changes(world) -> None:
    factory = await opened(world)
    before = factory.kind
    for _ in range(3):
        await factory.get_base_vm()
    assert (world.planned, factory.kind) == (1, before)


async def test_a_rebuilt_image_is_booted_and_its_machines_are_of_another_generation(world, tmp_path) -> None:
    factory = await opened(world)
    before = factory.kind
    world.image = replace(world.image, digest="2", kernel=tmp_path / "2" / "kernel", initramfs_sha256="i2")
    await factory.get_base_vm()
    assert world.booted[0].image.kernel == tmp_path / "2" / "kernel"
    assert factory.kind.generation != before.generation
    assert factory.kind.traits["image.initramfs"] == "i2"


async def test_a_replaced_emulator_is_asked_for_its_version(world) -> None:
    factory = await opened(world)
    before = factory.kind
    world.binary = SimpleNamespace(version="7.2.2", release=(7, 2, 2), stamp="2")
    await factory.refresh()
    assert factory.kind.traits["qemu.version"] == "7.2.2"
    assert factory.kind.generation != before.generation


@pytest.mark.parametrize("error", [ImageNotFound("mine"), ImageCorrupt("mine", "cut")], ids=["gone", "damaged"])
async def test_an_image_that_is_gone_is_an_error_and_the_next_one_is_booted(world, error) -> None:
    factory, image = await opened(world), world.image
    world.image = error
    with pytest.raises(type(error)):
        await factory.get_base_vm()
    world.image = image
    await factory.get_base_vm()
    assert len(world.booted) == 1
