"""The least memory of an image is what it really boots in, and a guest that has less is told as that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmfork.aio import VM
from vmfork.config import Instance, VMConfig
from vmfork.errors import ConfigError, LaunchError, MachineEnded
from vmfork.image import ImageStore
from vmfork.machine.launch import boot_base
from vmfork.machine.prepare import prepare

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


@pytest.fixture
def image(template_name, instance):
    return ImageStore(instance.images).open("default")


@pytest.mark.qemu
async def test_every_image_that_ran_is_measured_and_boots_in_exactly_that(image, instance) -> None:
    images = ImageStore(instance.images).list_images()
    measured = {i.name: i.min_memory_mib for i in images if i.min_memory_mib is not None}
    assert "default" in measured
    for name, least in measured.items():
        for cpus in (1, 4):
            async with await VM.boot(VMConfig(image=name, memory_mib=least, cpus=cpus)) as vm:
                assert (await vm.shell("cat /proc/uptime")).exit_code == 0, (name, cpus)


async def test_one_mib_less_is_refused_with_the_number(image) -> None:
    with pytest.raises(ConfigError) as refused:
        await VM.boot(VMConfig(memory_mib=image.min_memory_mib - 1))
    assert str(image.min_memory_mib) in refused.value.hint


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
