"""Machines whose root is on a disk: booted and forked, copied while they run, and held to their own disk."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.least import boots_in_its_least
from vmfork.aio import VM, Places, Template, VMConfig
from vmfork.config import ImageConfig
from vmfork.errors import ArtifactError, ImageCorrupt
from vmfork.host.tmpfs import unmount
from vmfork.image import DiskStore, ImageStore
from vmfork.image.build import build_image
from vmfork.machine.traits import DISK

pytestmark = [pytest.mark.vm, pytest.mark.needs("sqfstar", "mmdebstrap"), pytest.mark.slow]

NAME = "on-disk"
CONFIG = VMConfig(image=NAME, memory_mib=128)
# Several MiB.
READ = "cat /usr/lib/x86_64-linux-gnu/*.so* | wc -c"


@pytest.fixture(scope="module")
def image(instance):
    """Debian's least, on a disk."""
    return make_image(NAME, instance)


def make_image(name, instance, *packages):
    store = ImageStore(instance.images)
    config = ImageConfig(bare=True, packages=packages, root="disk")
    asyncio.run(build_image(name, config, store=store))
    return store.open(name)


@pytest.mark.limit_s(600)
async def test_it_boots_in_exactly_its_least_memory(image, instance):
    await boots_in_its_least(NAME, instance)


@pytest.fixture(scope="module")
def disk_template(image):
    template = asyncio.run(Template.build("disk-root", CONFIG, warm_up=["cat /usr/bin/ls > /root/warm", READ]))
    yield "disk-root"
    asyncio.run(template.remove())


@pytest.fixture
async def template(disk_template):
    return await Template.open(disk_template)


@pytest.fixture(params=["booted", "forked"])
async def any_disk_vm(request, template):
    async with await (VM.boot(CONFIG) if request.param == "booted" else template.fork()) as vm:
        yield vm


async def told(vm, line: str) -> str:
    return (await vm.shell(line, check=True)).stdout.strip()


async def test_its_root_is_the_disk_with_memory_over_it(any_disk_vm):
    vm = any_disk_vm
    assert vm.hardware.disk
    kinds = [line.split()[:3] for line in (await told(vm, "cat /proc/mounts")).splitlines()]
    assert [kind for kind in kinds if kind[1] == "/"] == [["overlay", "/", "overlay"]]
    assert "tmpfs /upper" not in str(kinds)
    # It is a root like any other: a folder of the disk is renamed, a file of it replaced, and it can be left.
    lines = "mv /usr/share /usr/moved; ls -d /usr/moved; echo new > /etc/hostname; cat /etc/hostname"
    assert (await told(vm, f"{lines}; stat -c %a /etc/shadow")).split() == ["/usr/moved", "new", "640"]
    assert await told(vm, "cat /sys/block/vda/ro") == "1"
    assert (await vm.shell("dd if=/dev/zero of=/dev/vda count=1")).exit_code != 0


async def test_what_is_written_is_limited_by_the_memory(any_disk_vm):
    free_kib, total_kib = (
        int(word) for word in (await told(any_disk_vm, "df --output=avail,size / | tail -1")).split()
    )
    assert 0 < free_kib <= total_kib < 128 * 1024
    full = await any_disk_vm.shell("head -c 300M /dev/zero > /root/large")
    assert "No space left" in full.stderr
    assert await told(any_disk_vm, "rm /root/large; echo well") == "well"


async def test_what_a_fork_writes_is_its_own(template):
    async with await template.fork() as one, await template.fork() as two:
        await told(one, "echo one > /usr/bin/ls")
        there, warm = (await told(two, "cksum < /usr/bin/ls; cksum < /root/warm")).splitlines()
        assert there == warm


async def test_what_was_read_before_the_freeze_is_in_memory_that_forks_share(template):
    async with await template.fork() as vm:
        await told(vm, "echo x | wc -c")
        before = vm.memory().guest_private
        read_bytes = int(await told(vm, READ))
        assert read_bytes > 4 << 20
        # Read again, it would be in pages of the fork's own.
        assert vm.memory().guest_private - before < read_bytes / 2


async def test_one_that_runs_is_forked_frozen_and_comes_back(template):
    async with await template.fork() as vm:
        await told(vm, "echo before > /etc/motd")
        point = await vm.checkpoint()
        (copy,) = await vm.fork(1)
        async with copy:
            assert await told(copy, "cat /etc/motd; wc -c < /usr/bin/cat") == await told(
                vm, "cat /etc/motd; wc -c < /usr/bin/cat"
            )
        frozen = await vm.freeze("disk-frozen")
        await told(vm, "rm -rf /usr/share; echo after > /etc/motd")
        await vm.rollback(point)
        assert await told(vm, "cat /etc/motd; ls -d /usr/share") == "before\n/usr/share"
    async with await frozen.fork() as vm:
        assert await told(vm, "cat /etc/motd; du -s /usr/bin > /dev/null; echo well") == "before\nwell"
    await frozen.remove()


@pytest.mark.parametrize(
    "config", [VMConfig(machine="microvm"), VMConfig(nic=True, max_memory_mib=512)], ids=["microvm", "card"]
)
async def test_it_is_found_on_either_board_and_beside_a_card(image, config):
    built = await Template.build("disk-board", replace(config, image=NAME, memory_mib=128), replace=True)
    try:
        grown = {"memory_mib": 384} if config.max_memory_mib > 128 else {}
        async with await built.fork(**grown) as vm:
            assert (
                await told(vm, "ls /sys/block; ls -d /sys/class/net/e* 2>/dev/null | wc -l")
                == f"vda\n{int(config.nic)}"
            )
            if grown:
                assert int(await told(vm, "df --output=size / | tail -1")) > 128 * 1024
    finally:
        await built.remove()


def opened_by(pid: int, disk: Path) -> list[int]:
    """The ways in which a process has the disk open: O_RDONLY and others."""
    found = disk.stat()
    ways = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        info = entry.stat()
        if (info.st_dev, info.st_ino) == (found.st_dev, found.st_ino):
            flags = next(
                line.split()[1]
                for line in Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
                if "flags" in line
            )
            ways.append(int(flags, 8) & os.O_ACCMODE)
    return ways


@pytest.mark.needs("root")
async def test_the_emulator_has_no_more_of_it_than_a_descriptor_to_read_by(template, instance):
    disk = instance.disks / template.manifest.traits[DISK] / "disk"
    async with await template.fork() as vm:
        assert vm.isolation.level == "full"
        assert set(opened_by(vm.pid, disk)) == {os.O_RDONLY}
        maps = Path(f"/proc/{vm.pid}/mountinfo").read_text()
        assert str(instance.home) not in maps


@asynccontextmanager
async def another_disk(path: Path):
    """In the place of the disk lies another, of the same size."""
    kept = path.with_name("kept")
    path.rename(kept)
    try:
        shutil.copyfile(kept, path)
        with path.open("r+b") as file:
            file.seek(kept.stat().st_size // 2)
            file.write(b"another")
        yield
    finally:
        kept.replace(path)


async def test_a_fork_over_another_disk_is_refused_by_name(template, instance):
    path = instance.disks / template.manifest.traits[DISK] / "disk"
    async with another_disk(path):
        with pytest.raises(ImageCorrupt, match=f"image {NAME!r} is damaged: its disk .* is another"):
            await template.fork()
    async with await template.fork() as vm:
        assert await told(vm, "echo well") == "well"


@pytest.fixture
def orphan(image, instance):
    """Another image on a disk."""
    return make_image("disk-goes", instance, "sed")


async def test_a_template_keeps_its_disk_when_the_image_goes(orphan, instance):
    store, disks = ImageStore(instance.images), DiskStore(instance.disks)
    built = await Template.build("disk-orphan", VMConfig(image=orphan.name, memory_mib=128))
    store.remove(orphan.name)
    async with await built.fork() as vm:
        await built.remove()
        # The machine has it still, and so has what is made of the machine.
        (copy,) = await vm.fork(1)
        async with copy:
            assert await told(copy, "du -s /usr/bin > /dev/null; echo well") == "well"
        assert disks.find_waste() == []
    assert disks.sweep() == [instance.disks / orphan.disk_sha256]


async def test_it_travels_with_its_disk(template, instance, tmp_path):
    await template.save(tmp_path / "file")
    other = Places(home=tmp_path / "home", runtime=instance.runtime / "other")
    loaded = await Template.load(tmp_path / "file", places=other)
    async with await loaded.fork() as vm:
        assert await told(vm, "du -s /usr/bin > /dev/null; cksum < /root/warm") == await told(vm, "cksum < /usr/bin/ls")
    await loaded.remove()
    assert not (other.disks / template.manifest.traits[DISK]).exists()


async def test_one_that_is_persisted_comes_back_with_its_disk(template, instance):
    """It stays on this host, and so does its disk."""
    async with await template.fork() as vm:
        kept = await vm.freeze("disk-kept")
    sha256 = kept.manifest.traits[DISK]
    await kept.persist()
    # As a reboot does it, as far as one process can: its memory is gone with all that was mounted there.
    folder = instance.templates / "disk-kept" / kept.manifest.generation
    if os.path.ismount(folder):
        unmount(folder)
    shutil.rmtree(folder.parent)
    assert "disk-kept.tar" in [path.name for path in DiskStore(instance.disks).list_users(sha256)]
    with pytest.raises(ArtifactError, match="disks that were not sent with it"):
        await Template.load(instance.persisted / "disk-kept.tar", "disk-loaded")
    back = await Template.open("disk-kept")
    async with await back.fork() as vm:
        assert await told(vm, "du -s /usr/bin > /dev/null; echo well") == "well"
    await back.remove()
