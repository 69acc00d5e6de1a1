"""Machines that are given another size while they run: real guests, asked for what they have."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.vm.cli_runner import vmfork
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import ConfigError, FitError, StoreBusy, VMNotFound

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

ROOMY = VMConfig(max_cpus=2, max_memory_mib=768)
NAME = "resizable"


@pytest.fixture(scope="module")
def roomy(instance):
    template = asyncio.run(Template.build(NAME, ROOMY))
    yield NAME
    asyncio.run(template.remove())


@pytest.fixture(params=["booted", "forked"])
async def roomy_vm(request, roomy):
    vm = await (VM.boot(ROOMY) if request.param == "booted" else (await Template.open(roomy)).fork())
    async with vm:
        yield vm


async def size_of(vm: VM) -> tuple[int, int]:
    """CPUs and MiB of memory that the guest says it has."""
    said = await vm.shell("nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo", timeout_s=60, check=True)
    cpus, mib = said.stdout.split()
    return int(cpus), int(mib)


async def test_a_guest_has_what_it_was_given_and_gives_it_back(roomy_vm) -> None:
    booted = await size_of(roomy_vm)
    await roomy_vm.resize(cpus=2, memory_mib=512)
    assert await size_of(roomy_vm) == (2, booted[1] + 256)
    # Programs have used it, and it goes all the same: what is in it moves.
    await roomy_vm.shell("python3 -c 'x = bytearray(200 << 20)'; true", timeout_s=60)
    await roomy_vm.resize(cpus=1, memory_mib=256)
    assert await size_of(roomy_vm) == booted
    assert (roomy_vm.hardware.cpus, roomy_vm.hardware.memory_mib, roomy_vm.hardware.added_mib) == (1, 256, ())
    await roomy_vm.resize(cpus=2)
    assert (await size_of(roomy_vm))[0] == 2
    (record,) = [record for record in await VM.list() if record.id == roomy_vm.id]
    assert (record.cpus, record.memory_mib) == (2, 256)


async def test_memory_that_a_guest_needs_is_refused_by_name_and_it_runs_on(roomy) -> None:
    async with await (await Template.open(roomy)).fork() as vm:
        await vm.resize(memory_mib=512)
        await vm.shell(
            "mount -o remount,size=400M /tmp && head -c 300M /dev/zero > /tmp/full", check=True, timeout_s=60
        )
        with pytest.raises(FitError, match="its guest needs it") as caught:
            await vm.resize(memory_mib=256)
        assert (caught.value.rolled_back, vm.hardware.memory_mib) == (True, 512)
        await vm.remove("/tmp/full")
        await vm.resize(memory_mib=256)
        assert vm.hardware.added_mib == ()


async def test_what_a_machine_has_no_room_for_is_refused_and_it_runs_on(any_vm) -> None:
    size = {"cpus": any_vm.hardware.max_cpus + 1}, {"memory_mib": any_vm.hardware.max_memory_mib + 1}
    for wanted in (*size, {"memory_mib": 128}, {"cpus": 0}, {"cpus": "2"}):
        with pytest.raises(ConfigError):
            await any_vm.resize(**wanted)
    assert (await any_vm.exec(["true"], timeout_s=60)).ok


async def test_the_command_resizes_a_machine_that_nobody_owns_and_leaves_it_so(roomy) -> None:
    vm = await (await Template.open(roomy)).fork()
    busy = await asyncio.to_thread(vmfork, "resize", vm.id, "--cpus", "2")
    assert (busy.status, "must be detached there first" in busy.err) == (1, True), busy
    handle = await vm.detach(ttl_s=600)
    try:
        told = await asyncio.to_thread(vmfork, "resize", vm.id, "--cpus", "2", "--memory", "512M", "--json")
        assert json.loads(told.check().out) == {"id": vm.id, "cpus": 2, "memory_mib": 512}
        refused = await asyncio.to_thread(vmfork, "resize", vm.id, "--memory", "64G")
        assert (refused.status, "room for" in refused.err) == (2, True), refused
        completed = {"COMP_WORDS": f"vmfork resize {vm.id[:2]}", "COMP_CWORD": "2", "_VMFORK_COMPLETE": "bash_complete"}
        assert f"plain,{vm.id}\n" in (await asyncio.to_thread(vmfork, env=completed)).check().out
        shrunk = await asyncio.to_thread(vmfork, "resize", vm.id, "--cpus", "1")
        assert shrunk.check().out == f"machine {vm.id}: 1 CPU, 512 MiB\n"
    finally:
        async with await VM.attach(handle.id) as again:
            assert (await size_of(again))[0] == 1
            assert 1 < (await again.detach(ttl_s=600)).left_s() <= 600
        async with await VM.attach(handle.id) as again:
            assert again.id == vm.id
    with pytest.raises((VMNotFound, StoreBusy)):
        await VM.attach(handle.id)


def test_a_machine_that_is_not_there_and_a_size_that_is_none_are_told() -> None:
    assert "no VM" in vmfork("resize", "0123456789ab", "--cpus", "2").err
    none = vmfork("resize", "0123456789ab")
    assert (none.status, "no size was given" in none.err) == (2, True)
