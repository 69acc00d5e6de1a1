"""A KVM that was demanded is had on every road; and a machine that stood for minutes goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from tests.timing import least_skew_s
from tests.vm.cli_runner import vmfork
from vmfork.adopt.clock import SKEW_LIMIT_S
from vmfork.aio import VM, Factory, Template
from vmfork.config import FactoryConfig, VMConfig
from vmfork.host import facts

pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.slow, pytest.mark.limit_s(900)]

# Longer than the kernel's watchdogs wait: 20 s for a soft lockup, 21 s for RCU, 120 s for a task that hangs.
PAUSE_S = 150.0


@pytest.fixture(scope="module")
def demanded(working_kvm):
    """The name of a template whose accelerator was demanded, where the others leave it to vmfork."""
    config = VMConfig(accel="kvm", max_cpus=2, max_memory_mib=512)
    template = asyncio.run(Template.build("demanded", config))
    yield template.name
    asyncio.run(template.remove())


async def test_a_kvm_that_was_demanded_is_had_on_every_road(demanded) -> None:
    template = await Template.open(demanded, config=VMConfig(accel="kvm"))
    async with await template.fork(cpus=2, memory_mib=512) as vm:
        assert (vm.accel, (await vm.shell("nproc", check=True, timeout_s=60)).stdout) == ("kvm", "2\n")
        handle = await vm.detach(ttl_s=300)
        async with await VM.attach(handle) as attached:
            await attached.write_file("/root/mine", "mine")
            assert (await attached.exec(["cat", "/root/mine"], check=True)).stdout == "mine"
    config = FactoryConfig(template=True, template_name=demanded, cache=1, vm=VMConfig(accel="kvm"))
    async with Factory(config) as factory, factory.get_vm(timeout_s=300) as vm:
        assert (vm.accel, factory.stats().fallbacks) == ("kvm", {})
        assert (await vm.exec(["true"])).ok
    settings = {"VMFORK_VM_ACCEL": "kvm"}
    done = await asyncio.to_thread(vmfork, "run", "-t", demanded, "--", "sh", "-c", "echo out; exit 3", env=settings)
    assert (done.status, done.out) == (3, "out\n")


async def test_one_that_is_portable_is_at_home_on_another_cpu(working_kvm, tmp_path, monkeypatch) -> None:
    await asyncio.to_thread(lambda: vmfork("template", "build", "portable", "--portable").check())
    template = await Template.open("portable")
    assert (template.hardware.accel, template.hardware.cpu_model.partition(",")[0]) == ("kvm", "qemu64")
    await template.save(tmp_path / "portable.tar")
    monkeypatch.setattr(facts, "cpu_name", lambda: "Another CPU (6-1-1, flags 0)")
    arrived = await Template.load(tmp_path / "portable.tar", "arrived")
    try:
        for each in (template, arrived):
            async with await each.fork() as vm:
                assert vm.accel == "kvm"
                assert (await vm.exec(["true"], timeout_s=60)).ok
    finally:
        await arrived.remove()
        await template.remove()


async def test_a_fork_paused_for_minutes_has_the_time_of_now_and_no_complaints(demanded) -> None:
    async with (
        await (await Template.open(demanded)).fork() as vm,
        await vm.start(["sh", "-c", "while sleep 0.1; do date +%s > /root/tick; done"]),
    ):
        await vm.pause()
        await asyncio.sleep(PAUSE_S)
        await vm.resume()
        assert await least_skew_s(vm, enough_s=SKEW_LIMIT_S) <= SKEW_LIMIT_S
        clock = await vm.read_file("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        assert clock == b"kvm-clock\n"
        # What ran at the pause runs, and reads the same clock.
        await vm.shell("rm /root/tick; until test -s /root/tick; do sleep 0.1; done", check=True, timeout_s=60)
        assert abs(int(await vm.read_file("/root/tick")) - time.time()) < 5
        said = (await vm.exec(["dmesg"], check=True)).stdout
        # That the TSC ran on, its kernel may find, and trust it no more: it goes by kvm-clock.
        assert not re.search("lockup|rcu.*stall|blocked for more", said), said
