"""An image and a host that do not suit the board are told so; a guest's kernel is told what it cannot find out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from vmfork.config import VMConfig
from vmfork.errors import ConfigError, HostError
from vmfork.hypervisor.base import Hardware
from vmfork.image.recipe import list_boot_modules
from vmfork.machine import board
from vmfork.machine.board import board_args, check_board, check_clock, check_disk

Q35 = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)
MICROVM = replace(Q35, machine="microvm", vmgenid=False)
IMAGE = SimpleNamespace(name="py", boot_modules=("virtio_mmio",))
OLD_IMAGE = SimpleNamespace(name="py", boot_modules=())


@pytest.fixture(params=[True, False])
def steady(request, monkeypatch) -> bool:
    monkeypatch.setattr(board, "has_steady_tsc", lambda: request.param)
    monkeypatch.setattr(board, "measure_tsc_khz", lambda: 2596122)
    return request.param


def test_a_guest_that_would_find_no_device_is_not_booted() -> None:
    with pytest.raises(ConfigError, match="image 'py' does not load virtio_mmio") as refused:
        check_board(VMConfig(machine="microvm"), OLD_IMAGE)
    assert refused.value.field == "vm.machine"
    assert "vmfork image build py --rebuild" in refused.value.hint
    check_board(VMConfig(machine="microvm"), IMAGE)
    check_board(VMConfig(), OLD_IMAGE)


def test_a_guest_that_would_find_no_disk_is_not_booted() -> None:
    with pytest.raises(ConfigError, match="image 'py' does not load ext4") as refused:
        check_disk(VMConfig(disk_mib=64), OLD_IMAGE)
    assert refused.value.field == "vm.disk_mib"
    check_disk(VMConfig(), OLD_IMAGE)
    check_disk(VMConfig(disk_mib=64), SimpleNamespace(name="py", boot_modules=list_boot_modules()))


def test_a_guest_that_would_have_no_clock_is_not_booted(steady) -> None:
    for has_one in (Q35, replace(MICROVM, accel="kvm")):
        check_clock(has_one)
    if steady:
        check_clock(MICROVM)
    else:
        with pytest.raises(HostError, match="no clock but the processor's TSC"):
            check_clock(MICROVM)


@pytest.mark.usefixtures("steady")
async def test_only_a_guest_without_another_clock_is_told_the_rate() -> None:
    assert await board_args(Q35) == ""
    assert await board_args(replace(MICROVM, accel="kvm")) == " reboot=t"
    assert await board_args(MICROVM) == " reboot=t tsc_early_khz=2596122 tsc=reliable"
