"""A disk that a fork is given though its template has none: empty, of its size, its own, and gone with it."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.vm.cli_runner import vmfork
from tests.vm.test_disk import FORGET, SUMS, nameless, told
from tests.vm.test_disk_root import make_image
from vmfork.aio import VM, Template, VMConfig
from vmfork.errors import AdoptError, ConfigError

pytestmark = pytest.mark.vm

SIZE_MIB = 64


async def check_is_new(vm, size_mib: int = SIZE_MIB) -> None:
    assert vm.hardware.scratch_mib == size_mib
    assert (await told(vm, "awk '$2 == \"/scratch\" {print $3}' /proc/mounts; stat -c %a /scratch")) == "ext4\n1777"
    assert await told(vm, "ls /scratch") == "lost+found"
    size_kib = int(await told(vm, "df --output=size /scratch | tail -1"))
    assert 0.8 * size_mib < size_kib / 1024 <= size_mib


async def write(vm) -> str:
    """Sums of what was written."""
    await told(vm, "head -c 3M /dev/urandom > /scratch/data")
    return await told(vm, SUMS)


@pytest.mark.kvm
async def test_it_is_the_forks_own_and_goes_along_where_that_is_copied(template, instance):
    one, two = await template.fork_many(2, disk=f"{SIZE_MIB}M")
    async with one, two:
        for vm in (one, two):
            await check_is_new(vm)
        sums = await write(one)
        (child,) = await one.fork(1)
        async with child:
            await told(one, "rm /scratch/data")
            assert await told(child, SUMS) == sums
            assert await told(child, "dmesg | grep -i 'ext4.*error\\|vda.*error' || true") == ""
        assert await told(two, f"{FORGET}; ls /scratch") == "lost+found"
    assert nameless(instance) == []


@pytest.mark.kvm
@pytest.mark.slow
async def test_one_that_runs_is_forked_with_one(fork, instance):
    await told(fork, "echo kept > /root/text")
    for child in await fork.fork(2, disk=SIZE_MIB):
        async with child:
            await check_is_new(child)
            assert await told(child, "cat /root/text") == "kept"
    assert fork.hardware.scratch_mib == 0
    assert await told(fork, "ls -d /scratch 2>/dev/null; ls /sys/block") == ""
    assert nameless(instance) == []


@pytest.mark.kvm
@pytest.mark.slow
async def test_what_is_frozen_and_gone_back_to_has_it(template, instance):
    async with await template.fork(disk=SIZE_MIB) as vm:
        sums = await write(vm)
        point = await vm.checkpoint()
        await told(vm, "rm /scratch/data; sync")
        await vm.rollback(point)
        assert await told(vm, SUMS) == sums
        frozen = await vm.freeze("disk-given")
    try:
        # As if it had been built with one: by its own name, by what is asked of it, and by what its forks have.
        assert (frozen.manifest.disk_mib, frozen.manifest.traits["disk_mib"]) == (SIZE_MIB, str(SIZE_MIB))
        again = await Template.ensure("disk-given", VMConfig(disk_mib=SIZE_MIB))
        assert again.generation == frozen.generation
        async with await again.fork(disk=SIZE_MIB) as vm, await again.fork() as other:
            for each in (vm, other):
                assert await told(each, SUMS) == sums
        with pytest.raises(ConfigError, match=f"a disk of {SIZE_MIB} MiB, not of 2 GiB"):
            await again.fork(disk="2G")
        with pytest.raises(ConfigError, match="not none"):
            await again.fork(disk=0)
    finally:
        await frozen.remove()
    assert nameless(instance) == []


@pytest.fixture
async def wide_template(template_name):
    """Its machines have a card, and room for memory."""
    built = await Template.build("given-wide", VMConfig(nic=True, max_memory_mib=512), replace=True)
    yield built
    await built.remove()


@pytest.mark.slow
async def test_it_is_found_beside_a_card_and_memory_that_was_added(wide_template):
    async with await wide_template.fork(disk=SIZE_MIB, memory_mib=384, card="restricted") as vm:
        await check_is_new(vm)
        sums = await write(vm)
        (child,) = await vm.fork(1, memory_mib=512)
        async with child:
            assert await told(child, SUMS) == sums
            assert await told(child, "ls -d /sys/class/net/e* | wc -l") == "1"
            # What is plugged in is not where the kernel has put the disk.
            await told(child, "head -c 200M /dev/zero > /tmp/large; rm /tmp/large")
            assert await told(child, SUMS) == sums


@pytest.fixture
async def rooted_template(template_name, instance):
    """Its root is on a disk, which is only read."""
    image = await asyncio.to_thread(make_image, "given-root", instance)
    built = await Template.build("given-root", VMConfig(image=image.name, memory_mib=128), replace=True)
    yield built
    await built.remove()


@pytest.mark.slow
async def test_it_is_found_beside_the_disk_of_a_root(rooted_template):
    async with await rooted_template.fork(disk=SIZE_MIB) as vm:
        assert vm.hardware.scratch_mib == SIZE_MIB
        await told(vm, "echo here > /scratch/text")
        assert await told(vm, "cat /sys/block/vd[ab]/ro; ls /scratch") == "1\n0\nlost+found\ntext"
        (child,) = await vm.fork(1)
        async with child:
            assert await told(child, f"{FORGET}; cat /scratch/text") == "here"


@pytest.mark.slow
async def test_one_that_its_guest_does_not_mount_ends_the_fork(template_name, instance):
    built = await Template.build("given-none", VMConfig(), warm_up=["touch /scratch"], replace=True)
    try:
        before = await VM.list()
        with pytest.raises(AdoptError, match=r"disk: .*cannot be mounted at /scratch") as refused:
            await built.fork(disk=SIZE_MIB)
        assert refused.value.item == "disk"
        assert await VM.list() == before
        async with await built.fork() as vm:
            assert await told(vm, "ls /sys/block") == ""
    finally:
        await built.remove()
    assert nameless(instance) == []


@pytest.mark.slow
async def test_a_board_without_a_bus_for_it_is_refused_by_name(template_name):
    built = await Template.build("given-small", VMConfig(machine="microvm"), replace=True)
    try:
        with pytest.raises(ConfigError, match="template 'given-small' is a microvm, which takes no disk") as refused:
            await built.fork(disk=SIZE_MIB)
        assert f"--disk {SIZE_MIB}" in refused.value.hint
    finally:
        await built.remove()


@pytest.mark.slow
def test_by_the_command_line(template_name, instance):
    size = f"{SIZE_MIB}M"
    ran = vmfork("run", "-t", template_name, "--disk", size, "--", "ls", "/scratch").check()
    assert ran.out == "lost+found\n"
    started = json.loads(vmfork("start", "-t", template_name, "--disk", size, "--json").check().out)["id"]
    (plain,) = vmfork("start", "-t", template_name).check().out.split()
    forked: list[str] = []
    try:
        vmfork("exec", started, "--", "sh", "-c", "echo here > /scratch/text").check()
        forked += vmfork("fork", started).check().out.split()
        assert vmfork("exec", forked[0], "--", "cat", "/scratch/text").check().out == "here\n"
        forked += vmfork("fork", plain, "--disk", size).check().out.split()
        assert vmfork("exec", forked[1], "--", "ls", "/scratch").check().out == "lost+found\n"
        refused = vmfork("fork", started, "--disk", "2G", "--json")
        error = json.loads(refused.out)["error"]
        assert (error["code"], f"a disk of {SIZE_MIB} MiB, not of 2 GiB" in error["message"]) == ("config", True)
        refused = vmfork("fork", plain, "--disk", "much", "--json")
        assert json.loads(refused.out)["error"]["code"] == "config"
    finally:
        for each in (started, plain, *forked):
            vmfork("stop", "--grace", "0", each).check()
    assert nameless(instance) == []


@pytest.mark.slow
async def test_many_are_given_one_at_once(template, instance):
    vms = await template.fork_many(6, disk=SIZE_MIB)
    try:
        lines = [f"echo {number} > /scratch/own; {FORGET}; cat /scratch/own" for number in range(6)]
        found = await asyncio.gather(*map(told, vms, lines))
        assert found == list(map(str, range(6)))
    finally:
        await asyncio.gather(*(vm.aclose() for vm in vms))
    assert nameless(instance) == []
