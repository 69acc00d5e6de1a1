"""The least memory of an image is what it really boots in, and a guest that has less is told as that."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace

import pytest

from tests.vm.cli_runner import vmfork
from tests.vm.least import boots_in_its_least
from vmfork.aio import VM, Factory, Template
from vmfork.config import FactoryConfig, ImageConfig, Instance, VMConfig
from vmfork.errors import ConfigError, LaunchError, MachineEnded
from vmfork.image import ImageStore, write_least
from vmfork.image.build import build_image
from vmfork.machine.launch import boot_base
from vmfork.machine.prepare import prepare

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


@pytest.fixture
def image(template_name, instance):
    return ImageStore(instance.images).open("default")


@pytest.mark.parametrize("name", [pytest.param("default", marks=pytest.mark.qemu), "bare"])
async def test_an_image_boots_in_exactly_its_least_memory(image, instance, name) -> None:
    """The one that users have, and the least there can be; other tests ask it of those they build."""
    if name == "bare":  # where no image can be built, it was brought
        await build_image(name, ImageConfig(bare=True), store=ImageStore(instance.images))
    await boots_in_its_least(name, instance)


async def test_one_mib_less_is_refused_with_the_number(image) -> None:
    with pytest.raises(ConfigError) as refused:
        await VM.boot(VMConfig(memory_mib=image.min_memory_mib - 1))
    assert str(image.min_memory_mib) in refused.value.hint


@pytest.fixture
def needs_300(image, instance, tmp_path, monkeypatch):
    """The default image in a HOME of its own, as if this host had found that it needs 300 MiB there."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for kept in instance.images, instance.home / "verdicts":
        shutil.copytree(kept, home / kept.name, symlinks=True)
    monkeypatch.setenv("VMFORK_HOME", str(home))
    write_least(home / "images" / image.kernel.parent.name, 300, measured="for a test")


async def test_without_a_word_of_memory_every_road_gives_what_the_image_needs(needs_300) -> None:
    async with VM.boot() as vm:
        assert vm.hardware.memory_mib == 300
    built = await asyncio.to_thread(vmfork, "template", "build", "mine", "--json")
    assert json.loads(built.check().out)["memory_mib"] == 300
    refused = await asyncio.to_thread(vmfork, "template", "build", "other", "--memory", "299M")
    assert (refused.status, "give at least 300 MiB" in refused.err) == (2, True)
    try:
        config = FactoryConfig(template=True, template_name="mine", cache=1)
        async with Factory(config) as factory, factory.get_vm(timeout_s=240) as vm:
            assert (vm.hardware.memory_mib, factory.stats().fallbacks) == (300, {})
            assert any("size=300M" in argument for argument in vm.argv)
            assert (await vm.exec(["true"])).ok
    finally:
        await (await Template.open("mine")).remove()
    template = await Template.build("mine", VMConfig(memory_mib=300, max_memory_mib=428))
    try:
        assert (template.manifest.memory_mib, template.manifest.max_memory_mib) == (300, 428)
    finally:
        await template.remove()


async def test_a_guest_that_runs_out_of_memory_while_it_boots_is_told_as_that(image, instance) -> None:
    plan = await prepare(VMConfig(), Instance(instance))
    small = replace(plan, hardware=replace(plan.hardware, memory_mib=190, max_memory_mib=190))
    with pytest.raises(LaunchError, match=r"ran out of memory \(System is deadlocked on memory\)") as died:
        await boot_base(small, instance=Instance(instance))
    assert died.value.hint == f"give it more than 190 MiB, such as {image.min_memory_mib} MiB"


async def test_a_guest_that_panics_later_tells_its_panic(any_vm) -> None:
    with pytest.raises(MachineEnded, match="the guest's kernel panicked: sysrq triggered crash") as ended:
        await any_vm.shell("echo c > /proc/sysrq-trigger; sleep 60")
    assert ended.value.panic == "sysrq triggered crash"
