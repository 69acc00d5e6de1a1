"""Memory that nobody asked for: enough for the image, and told from memory that was asked for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from vmfork.config import VMConfig
from vmfork.config.loader import load_settings
from vmfork.errors import ConfigError
from vmfork.host import facts
from vmfork.hypervisor.base import Hardware
from vmfork.machine import prepare as preparing
from vmfork.machine.growth import raise_to_least
from vmfork.machine.plan import make_hardware
from vmfork.machine.prepare import prepare
from vmfork.records import read_record, write_record
from vmfork.units import MIB, Unsaid


def is_unsaid(config: VMConfig) -> bool:
    return isinstance(config.memory_mib, Unsaid)


def test_what_nobody_gave_is_known_as_that_wherever_it_goes(tmp_path) -> None:
    config = VMConfig(image="mine")
    assert config.memory_mib == 256
    for same in (config, replace(config, cpus=2), read_record(VMConfig, write_record(config))):
        assert is_unsaid(same)
    for given in (VMConfig(memory_mib=256), replace(config, memory_mib=256)):
        assert not is_unsaid(given)
        assert not is_unsaid(read_record(VMConfig, write_record(given)))


async def test_what_a_machine_has_is_a_fact_whoever_said_it(tmp_path) -> None:
    """A record of a machine without its memory could not be read."""
    binary = SimpleNamespace(version="7.2.1", release=(7, 2, 1), stamp="1")
    hardware = make_hardware(VMConfig(), binary=binary, accel="tcg")
    assert type(hardware.memory_mib) is int
    assert read_record(Hardware, write_record(hardware)) == hardware
    assert read_record(Hardware, write_record(replace(hardware, memory_mib=Unsaid(256)))) == hardware


def test_file_environment_and_arguments_tell_it_alike(tmp_path) -> None:
    file = tmp_path / "vmfork.toml"
    file.write_text("[vm]\ncpus = 2\n")
    assert is_unsaid(load_settings(file, {}).vm)
    assert is_unsaid(load_settings(file, {}).factory.vm)
    assert not is_unsaid(load_settings(file, {"VMFORK_VM_MEMORY_MIB": "256"}).vm)
    assert not is_unsaid(load_settings(file, {}, {"vm.memory_mib": "256M"}).vm)
    assert is_unsaid(load_settings(file, {}, {"vm.memory_mib": None}).vm)
    file.write_text('[vm]\nmemory_mib = "256M"\n')
    assert not is_unsaid(load_settings(file, {}).vm)


@pytest.mark.parametrize(("least_mib", "memory_mib"), [(0, 256), (255, 256), (256, 256), (257, 257), (408, 408)])
def test_it_is_what_the_image_needs_and_256_at_least(least_mib, memory_mib) -> None:
    assert raise_to_least(VMConfig(), least_mib).memory_mib == memory_mib
    given = VMConfig(memory_mib=200)
    assert raise_to_least(given, least_mib) is given


@pytest.mark.parametrize(("most_mib", "memory_mib"), [(512, 512), (640, 512), (1024, 512), (768, 512)])
def test_it_leaves_whole_blocks_to_grow_by(most_mib, memory_mib) -> None:
    raised = raise_to_least(VMConfig(max_memory_mib=most_mib), 408)
    assert (raised.memory_mib, raised.max_memory_mib) == (memory_mib, most_mib)


def test_an_image_that_needs_more_than_a_machine_may_grow_to_is_refused() -> None:
    assert raise_to_least(VMConfig(max_memory_mib=384), 384).memory_mib == 384
    with pytest.raises(ConfigError, match=r"vm.max_memory_mib: image 'default' needs more") as refused:
        raise_to_least(VMConfig(max_memory_mib=384), 385)
    assert refused.value.hint == "give 512, or 0 for no growth"
    assert raise_to_least(VMConfig(max_memory_mib=512), 385).memory_mib == 512
    assert raise_to_least(VMConfig(max_memory_mib=0), 385).memory_mib == 385


@pytest.fixture
def needing(monkeypatch):
    """`prepare` on a host on which the image was measured to need 408 MiB."""
    plan = SimpleNamespace(
        image=SimpleNamespace(name="mine", min_memory_mib=408), binary="qemu", hardware=SimpleNamespace(accel="tcg")
    )

    def giving(value):
        async def give(*_, **__):
            return value

        return give

    async def make_plan(config, **given):
        assert given == {"image": plan.image, "binary": "qemu", "accel": "tcg"}
        return SimpleNamespace(image=plan.image, memory_mib=config.memory_mib)

    for name, value in (("find_emulator", None), ("ensure_image", plan.image), ("try_out", plan)):
        monkeypatch.setattr(preparing, name, giving(value))
    monkeypatch.setattr(preparing, "make_plan", make_plan)
    monkeypatch.setattr(facts, "total_memory_bytes", lambda: 1024 * MIB)
    return SimpleNamespace(places=None)


async def test_a_machine_gets_what_its_image_needs_and_one_mib_less_is_refused_with_the_number(needing) -> None:
    assert (await prepare(VMConfig(image="mine"), needing)).memory_mib == 408
    await prepare(VMConfig(image="mine", memory_mib=408), needing)
    with pytest.raises(ConfigError, match="407 MiB is too little for image 'mine'") as refused:
        await prepare(VMConfig(image="mine", memory_mib=407), needing)
    assert refused.value.hint == "give at least 408 MiB"
    with pytest.raises(ConfigError, match="256 MiB is too little for image 'mine'"):
        await prepare(VMConfig(image="mine", memory_mib=256), needing)


async def test_an_image_that_needs_more_than_the_host_has_is_refused(needing, monkeypatch) -> None:
    monkeypatch.setattr(facts, "total_memory_bytes", lambda: 408 * MIB)
    assert (await prepare(VMConfig(image="mine"), needing)).memory_mib == 408
    monkeypatch.setattr(facts, "total_memory_bytes", lambda: 408 * MIB - 1)
    with pytest.raises(ConfigError, match="408 MiB were asked for, the host has 407 MiB in all"):
        await prepare(VMConfig(image="mine"), needing)
