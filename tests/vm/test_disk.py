"""A disk that a machine writes to: its own in each fork, copied in the moment in which memory is, gone with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.cli_runner import belongs, run, vmfork
from tests.vm.struck import FORKS, strike_at, was_struck
from vmfork.aio import VM, Places, Template, VMConfig
from vmfork.errors import HostError, TemplateCorrupt
from vmfork.host import copier
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.hypervisor.qemu import scratch
from vmfork.image import DiskStore

pytestmark = pytest.mark.vm

NAME = "with-disk"
SIZE_MIB = 256
CONFIG = VMConfig(disk_mib=SIZE_MIB)
MIB = 1 << 20
# What is read afterwards comes from the disk, and not from memory.
FORGET = "sync; echo 3 > /proc/sys/vm/drop_caches"
SUMS = f"{FORGET}; cd /scratch; find . -type f | sort | xargs cksum"
# Writes one number behind the other, and has some of them on the disk, some in memory.
COUNT = """
import os, time
fd = os.open("/scratch/count", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
for number in range(1 << 40):
    os.write(fd, b"%07d\\n" % number)
    if number % 50 == 0:
        os.fsync(fd)
"""


@pytest.fixture(scope="module")
def disk_template(template_name):
    warm_up = ["head -c 4M /dev/urandom > /scratch/warm", "cksum < /scratch/warm > /root/warm.sum"]
    template = asyncio.run(Template.build(NAME, CONFIG, warm_up=warm_up))
    yield NAME
    asyncio.run(template.remove())


@pytest.fixture
async def template(disk_template):
    return await Template.open(disk_template)


async def told(vm, line: str) -> str:
    return (await vm.shell(line, check=True)).stdout.strip()


def nameless(places) -> list[str]:
    """What we or a process of ours have open in the folder of disks under no name. Other runs may share that folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) == os.getpid() or belongs(process, places.runtime):
                found += [target for target in list_open(process) if target.startswith(f"{places.disks}/")]
    return [target for target in found if target.endswith("(deleted)")]


def list_open(process: Path) -> list[str]:
    """What each descriptor of the process leads to, while it is open."""
    found = []
    for link in (process / "fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(link))
    return found


@pytest.mark.kvm
async def test_forks_have_what_was_on_it_and_what_they_write_is_their_own(template, instance):
    async with await template.fork() as one, await template.fork() as two:
        assert one.hardware.scratch_mib == SIZE_MIB
        kind, options = (await told(one, "awk '$2 == \"/scratch\" {print $3, $4}' /proc/mounts")).split()
        assert (kind, "discard" in options, "rw" in options) == ("ext4", True, True)
        assert await told(one, "stat -c %a /scratch") == "1777"
        size_kib = int(await told(one, "df --output=size /scratch | tail -1"))
        assert 0.9 * SIZE_MIB < size_kib / 1024 <= SIZE_MIB
        await told(one, "echo mine > /scratch/own; rm /scratch/warm")
        assert await told(two, f"{FORGET}; ls /scratch; cksum < /scratch/warm") == await told(
            two, "echo lost+found; echo warm; cat /root/warm.sum"
        )
        assert await told(one, f"{FORGET}; ls /scratch") == "lost+found\nown"
    assert nameless(instance) == []


@pytest.mark.kvm
async def test_one_that_runs_is_forked_with_it(template):
    """Its program counts in memory and on the disk at once: neither is ahead in any copy."""
    async with await template.fork() as vm:
        await vm.write_file("/root/count.py", COUNT)
        await told(vm, "head -c 8M /dev/urandom > /scratch/data; cksum < /scratch/data > /root/data.sum")
        await told(vm, "setsid python3 /root/count.py > /dev/null 2>&1 & echo $! > /root/pid")
        await told(vm, "until test -s /scratch/count; do sleep 0.1; done")
        children = await vm.fork(2)
        await told(vm, "rm /scratch/data")
        grown = []
        for child in children:
            async with child:
                (below,) = await child.fork(1)
                async with below:
                    for each in (child, below):
                        await told(
                            each, "p=$(cat /root/pid); kill -9 $p; while kill -0 $p 2>/dev/null; do sleep 0.1; done"
                        )
                        await told(each, FORGET)
                        assert await told(each, "cksum < /scratch/data") == await told(each, "cat /root/data.sum")
                        assert await told(each, "cksum < /scratch/warm") == await told(each, "cat /root/warm.sum")
                        numbers = (await told(each, "cat /scratch/count")).split()
                        assert [int(number) for number in numbers] == list(range(len(numbers)))
                        grown.append(len(numbers))
                        assert "error" not in await told(each, "dmesg | grep -i 'ext4\\|vd[ab]' || true")
        assert min(grown) > 1


# One block in each 64 KiB, the unit in which QEMU copies, from the end on: what is copied last is written first.
OVERWRITE = """
import os
fd = os.open("/scratch/data", os.O_RDWR)
for place in reversed(range(0, os.fstat(fd).st_size, 1 << 16)):
    os.pwrite(fd, b"after" * 819, place)
os.fsync(fd)
"""


async def write_while_copied(vm, monkeypatch, copy):
    """What `copy` gives. QEMU had begun to copy the disk, and the guest wrote all over it before it went on."""
    finish, seen = scratch.finish, []

    async def finish_late(monitor):
        await told(vm, "python3 /root/overwrite.py; echo after > /scratch/text; rm /scratch/warm; sync")
        seen.extend(job for job in await monitor.execute("query-jobs") if job["id"] == scratch.COPY)
        await finish(monitor)

    with monkeypatch.context() as patched:
        patched.setattr(scratch, "finish", finish_late)
        copied = await copy()
    # The machine had gone on, and little was copied that it did not overwrite: its pause was not for that.
    (job,) = seen
    assert job["status"] == "running"
    assert job["current-progress"] < job["total-progress"]
    return copied


async def prepare(vm) -> str:
    await vm.write_file("/root/overwrite.py", OVERWRITE)
    await told(vm, "head -c 8M /dev/urandom > /scratch/data; echo before > /scratch/text")
    return await told(vm, SUMS)


@pytest.mark.kvm
async def test_what_is_written_while_it_is_copied_is_in_no_fork(template, monkeypatch):
    async with await template.fork() as vm:
        before = await prepare(vm)
        (child,) = await write_while_copied(vm, monkeypatch, lambda: vm.fork(1))
        async with child:
            assert await told(child, SUMS) == before
            assert await told(vm, f"{FORGET}; cat /scratch/text; ls /scratch") == "after\ndata\nlost+found\ntext"


@pytest.mark.kvm
@pytest.mark.slow
async def test_nor_in_what_it_goes_back_to_or_is_frozen_as(template, monkeypatch):
    async with await template.fork() as vm:
        before = await prepare(vm)
        point = await write_while_copied(vm, monkeypatch, vm.checkpoint)
        await vm.rollback(point)
        assert await told(vm, SUMS) == before
        frozen = await write_while_copied(vm, monkeypatch, lambda: vm.freeze("disk-written"))
        async with await frozen.fork() as child:
            assert await told(child, SUMS) == before
        await frozen.remove()


async def find_copy(vm) -> list[str]:
    """What QEMU has of a copy: jobs, and files."""
    async with vm._running.machine._asking() as monitor:
        jobs = [job["id"] for job in await monitor.execute("query-jobs")]
        nodes = [node["node-name"] for node in await monitor.execute("query-named-block-nodes", flat=True)]
    return [name for name in (*jobs, *nodes) if name == scratch.COPY]


async def check_nothing_is_left(vm, before: str) -> None:
    """No copy is under way, and the next one is whole."""
    assert await find_copy(vm) == []
    (child,) = await vm.fork(1)
    async with child:
        assert await told(child, SUMS) == before


@pytest.mark.slow
@pytest.mark.parametrize("step", ["blockdev-backup", "cont"])
async def test_a_copier_that_is_killed_leaves_nothing_of_a_copy(template, tmp_path, monkeypatch, step):
    """As `test_a_fork_that_is_cancelled`, with the job begun: QEMU would have each write wait for it, slow as it is."""
    async with await template.fork() as vm:
        before = await prepare(vm)
        script = strike_at(tmp_path, step, "[child.pid]")
        with monkeypatch.context() as patched:
            patched.setattr(copier, "find_copier", lambda: script)
            with pytest.raises(HostError, match="could not be copied"):
                await vm.fork(1)
        assert was_struck(script)
        await check_nothing_is_left(vm, before)


@pytest.mark.slow
async def test_a_fork_that_is_cancelled_while_its_disk_is_copied_leaves_nothing_of_a_copy(template, monkeypatch):
    async with await template.fork() as vm:
        before = await prepare(vm)
        begun = asyncio.Event()

        async def finish(monitor):
            begun.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patched:
            patched.setattr(scratch, "finish", finish)
            task = asyncio.create_task(vm.fork(1))
            await begun.wait()
            assert await told(vm, f"{FORGET}; cat /scratch/text") == "before"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await check_nothing_is_left(vm, before)


@pytest.mark.slow
async def test_a_process_that_is_killed_while_the_disk_is_copied_leaves_one_that_can_be_forked(template, tmp_path):
    """The job goes on, slow as it is, until the next copy: what the guest writes meanwhile is its own."""
    async with await template.start() as vm:
        try:
            before = await prepare(vm)
            script = strike_at(tmp_path, "cont", "[os.getppid()]")
            assert run(sys.executable, "-c", FORKS, vm.id, str(script)).status == -signal.SIGKILL
            assert was_struck(script)
            assert await find_copy(vm) != []
            await told(vm, "python3 /root/overwrite.py; sync")
            after = await told(vm, SUMS)
            assert after != before
            (child,) = vmfork("fork", vm.id).check().out.split()
            assert await find_copy(vm) == []
            assert vmfork("exec", child, "--", "sh", "-c", SUMS).check().out.strip() == after
            vmfork("stop", "--grace", "0", child).check()
        finally:
            await vm.stop(grace_s=0)


@pytest.mark.slow
async def test_clients_that_copy_one_machine_at_once_take_turns(template):
    async with await template.start() as vm, await VM.connect(vm.id) as other:
        try:
            before = await prepare(vm)
            for copies in await asyncio.gather(*(each.fork(1) for each in (vm, other, vm, other))):
                (child,) = copies
                async with child:
                    assert await told(child, SUMS) == before
        finally:
            await vm.stop(grace_s=0)


@pytest.mark.slow
async def test_its_pause_does_not_grow_with_what_is_on_it(template, monkeypatch):
    """Beside a copy that begins as fast as it can, in turn, on the same machine: the least of each."""
    hasty = json.loads(scratch.BEGIN)
    del hasty["arguments"]["speed"]
    async with await template.fork() as vm:
        await told(vm, "head -c 160M /dev/urandom > /scratch/large; sync")
        pauses = {"slow": [], "hasty": []}
        for kind, begin in [("slow", scratch.BEGIN), ("hasty", json.dumps(hasty))] * 5:
            monkeypatch.setattr(scratch, "BEGIN", begin)
            point = await vm.checkpoint()
            pauses[kind].append(point.pause_s)
            await point.remove()
        assert min(pauses["slow"]) < min(pauses["hasty"]) / 3, pauses


@pytest.mark.kvm
@pytest.mark.slow
async def test_it_goes_back_with_its_machine_and_is_in_what_is_frozen(template, instance):
    async with await template.fork() as vm:
        await told(vm, "echo before > /scratch/text; head -c 3M /dev/urandom > /scratch/data")
        before = await told(vm, SUMS)
        point = await vm.checkpoint()
        for _ in range(2):
            await told(vm, "rm -r /scratch/data; echo after > /scratch/text; sync")
            await vm.rollback(point)
            assert await told(vm, SUMS) == before
        frozen = await vm.freeze("disk-frozen")
        await told(vm, "find /scratch -type f -delete; sync")
    # Of a fork of it another is made, and of that one more: each has all that those before it wrote.
    for number in range(3):
        async with await frozen.fork() as vm:
            assert await told(vm, SUMS) == before
            await told(vm, f"echo {number} > /scratch/{number}")
            before = await told(vm, SUMS)
            frozen = await vm.freeze("disk-frozen", replace=True)
    store = DiskStore(instance.disks)
    sha256 = frozen.manifest.disk_sha256
    assert store.list_users(sha256) == [instance.templates / "disk-frozen" / frozen.manifest.generation]
    await frozen.remove()
    assert not (instance.disks / sha256).exists()
    assert nameless(instance) == []


@pytest.mark.slow
async def test_a_checkpoint_of_one_that_stands_alone_keeps_it(template, instance):
    async with await template.start(name="disk-alone") as vm:
        try:
            await told(vm, "echo kept > /scratch/text")
            await vm.checkpoint(name="there", lasting=True)
            await told(vm, "rm /scratch/text /scratch/warm; sync")
            vmfork("rollback", "disk-alone", "there").check()
            async with await VM.connect("disk-alone") as back:
                assert await told(back, f"{FORGET}; cat /scratch/text") == "kept"
                assert await told(back, "cksum < /scratch/warm") == await told(back, "cat /root/warm.sum")
        finally:
            vmfork("stop", "disk-alone").check()
    vmfork("gc").check()
    assert nameless(instance) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["microvm", "card"])
async def test_it_is_found_on_either_board_and_beside_a_card(template_name, kind):
    config = replace(CONFIG, **({"machine": "microvm"} if kind == "microvm" else {"nic": True}))
    built = await Template.build("disk-board", config, warm_up=["echo here > /scratch/text"], replace=True)
    try:
        async with await built.fork() as vm:
            (child,) = await vm.fork(1)
            async with child:
                for each in (vm, child):
                    assert await told(each, f"{FORGET}; cat /scratch/text; ls /sys/block") == "here\nvda"
                    assert await told(each, "ls -d /sys/class/net/e* 2>/dev/null | wc -l") == str(int(kind == "card"))
    finally:
        await built.remove()


@pytest.mark.slow
async def test_one_that_boots_without_a_template_has_it(template_name, instance):
    async with await VM.boot(CONFIG) as vm:
        await told(vm, "echo here > /scratch/text")
        (child,) = await vm.fork(1)
        async with child:
            assert await told(child, f"{FORGET}; cat /scratch/text") == "here"
    assert nameless(instance) == []


def own_blocks(pid: int, places) -> int:
    """Bytes on the host of what the machine wrote itself: the one file that it has open for both."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith(f"{places.disks}/") and target.endswith("(deleted)"):
            flags = int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0], 8)
            if flags & os.O_ACCMODE == os.O_RDWR:
                return link.stat().st_blocks * 512
    raise AssertionError("no such file")


@pytest.mark.slow
@pytest.mark.needs("root")
async def test_it_is_full_at_its_size_and_what_is_removed_is_given_back(template, instance):
    async with await template.fork() as vm:
        empty = own_blocks(vm.pid, instance)
        full = await vm.shell(f"head -c {2 * SIZE_MIB}M /dev/urandom > /scratch/large; sync")
        assert "No space left" in full.stderr
        held = own_blocks(vm.pid, instance)
        assert SIZE_MIB * 0.9 * MIB < held - empty < SIZE_MIB * 1.1 * MIB
        await told(vm, "rm /scratch/large; sync; fstrim /scratch 2>/dev/null; sync")
        assert own_blocks(vm.pid, instance) - empty < 32 * MIB
        assert await told(vm, "echo well > /scratch/text; cat /scratch/text") == "well"


@asynccontextmanager
async def small_disks(places, size_mib: int):
    """The folder of disks is a file system of that size."""
    mount_tmpfs(places.disks, size_bytes=size_mib * MIB)
    try:
        yield
    finally:
        unmount(places.disks)


@pytest.mark.slow
@pytest.mark.needs("root")
async def test_a_full_disk_of_the_host_is_told_to_the_guest_and_to_who_copies(disk_template, instance):
    async with small_disks(instance, 24):
        built = await Template.build("disk-small", CONFIG)
        async with await built.fork() as vm:
            await vm.shell("head -c 64M /dev/urandom > /scratch/large; sync")
            # Its disk does not take more, and it runs on.
            assert "error" in (await told(vm, "dmesg | grep vda")).lower()
            with pytest.raises(Exception, match=r"(?i)disk|space"):
                await vm.freeze("disk-none")
            assert await told(vm, "echo well") == "well"
        await built.remove()


@pytest.mark.slow
async def test_what_is_missing_or_another_is_refused_by_name(template_name, instance):
    built = await Template.build("disk-gone", CONFIG, warm_up=["date > /scratch/date"])
    place = instance.disks / built.manifest.disk_sha256 / "disk"
    place.chmod(0o600)
    with place.open("r+b") as file:
        file.seek(place.stat().st_size - 1)
        file.write(b"?")
    with pytest.raises(TemplateCorrupt, match=r"template 'disk-gone' is damaged: disk: .* is another"):
        await built.fork()
    place.unlink()
    with pytest.raises(TemplateCorrupt, match=r"template 'disk-gone' is damaged: disk: .* is missing"):
        await built.fork()
    await built.remove()


@pytest.mark.slow
def test_by_the_command_line(disk_template, template_name):
    assert vmfork("run", "-t", NAME, "--disk", f"{SIZE_MIB}M", "--", "ls", "/scratch/warm").check().out
    refused = vmfork("run", "-t", NAME, "--disk", "2G", "--json", "--", "true")
    assert refused.status == 125
    error = json.loads(refused.out)["error"]
    assert (error["code"], f"a disk of {SIZE_MIB} MiB, not of 2 GiB" in error["message"]) == ("config", True)
    assert "--disk 2048" in error["hint"]
    vmfork("template", "build", "disk-cli", "--disk", "64M", "--run", "echo here > /scratch/text").check()
    started = json.loads(vmfork("start", "-t", "disk-cli", "--json").check().out)
    try:
        assert vmfork("exec", started["id"], "--", "cat", "/scratch/text").check().out == "here\n"
    finally:
        vmfork("stop", started["id"]).check()
        vmfork("template", "rm", "disk-cli").check()


@pytest.mark.slow
async def test_it_goes_along_to_another_instance(template, instance, tmp_path):
    await template.save(tmp_path / "file")
    other = Places(home=tmp_path / "home", runtime=instance.runtime / "other")
    loaded = await Template.load(tmp_path / "file", places=other)
    async with await loaded.fork() as vm:
        assert await told(vm, f"{FORGET}; cksum < /scratch/warm") == await told(vm, "cat /root/warm.sum")
    await loaded.persist()
    await loaded.remove()
    assert not [path for path in other.disks.iterdir() if path.name != "lock"]
