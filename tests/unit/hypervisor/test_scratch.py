"""A disk is copied as it was when the copy was begun, hardly anything of it before the machine goes on."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from dataclasses import replace

import pytest

from vmfork.errors import HostError
from vmfork.hypervisor.base import Scratch
from vmfork.hypervisor.qemu import scratch, write_empty

MIB = 1 << 20
SIZE_MIB = 16
CLUSTER = 1 << 16
BEFORE, AFTER = 0x11, 0x22
# From the end on: what would be copied last.
WRITTEN = [place * CLUSTER for place in (SIZE_MIB * 16 - 1, 200, 150, 40)]
FULL = bytes([BEFORE]) * SIZE_MIB * MIB


def overwritten() -> bytes:
    content = bytearray(FULL)
    for place in WRITTEN:
        content[place : place + 4096] = bytes([AFTER]) * 4096
    return bytes(content)


@pytest.fixture
def files():
    """Empty images, without a name."""
    opened: list[int] = []

    def make() -> int:
        fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        opened.append(fd)
        write_empty(fd, SIZE_MIB)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


@pytest.fixture
async def machine(start, launch, files):
    """It stands still, as where a copy is begun, and its disk is full of what was there before."""
    base = files()
    os.ftruncate(base, 0)
    os.pwrite(base, FULL, 0)
    machine = start(
        hardware=replace(launch.hardware, scratch_mib=SIZE_MIB),
        scratch=Scratch(base_fd=base, base_format="raw", own_fd=files()),
    )
    await machine.pause()
    return machine


async def ask(machine, command: str, **arguments):
    async with machine._asking() as monitor:
        return await monitor.execute(command, **arguments)


async def overwrite(machine, places) -> None:
    """The device was told to write, as by its guest. What cannot be written is in QEMU's log."""
    for place in places:
        line = f'qemu-io -d /machine/peripheral/scratch/virtio-backend "write -P {AFTER:#x} {place} 4096"'
        assert await ask(machine, "human-monitor-command", **{"command-line": line}) == ""


async def begin(machine, line: str) -> None:
    said = json.loads(line)
    await ask(machine, said["execute"], **said["arguments"])


async def find_job(machine) -> dict | None:
    return next((job for job in await ask(machine, "query-jobs") if job["id"] == scratch.COPY), None)


async def check_none_left(machine) -> None:
    assert await find_job(machine) is None
    nodes = await ask(machine, "query-named-block-nodes", flat=True)
    assert scratch.COPY not in {node["node-name"] for node in nodes}


async def copy_now(machine, files) -> int:
    copy = files()
    await machine.copy_scratch(copy)
    return copy


def read_copy(fd: int, folder) -> bytes:
    out = folder / "raw"
    here = f"/proc/self/fd/{fd}"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", here, str(out)], pass_fds=[fd], check=True)
    return out.read_bytes()


@pytest.mark.needs("qemu-img")
async def test_it_is_of_the_moment_in_which_it_was_begun(machine, files, tmp_path) -> None:
    copy = files()
    async with machine.copying_scratch(copy) as line:
        await begin(machine, line)
        assert os.fstat(copy).st_blocks * 512 < 2 * MIB
        await overwrite(machine, WRITTEN)
        job = await find_job(machine)
        assert (job["status"], job["current-progress"] < 4 * MIB) == ("running", True)
        assert os.fstat(copy).st_blocks * 512 < 4 * MIB
    await check_none_left(machine)
    assert read_copy(copy, tmp_path) == FULL
    assert read_copy(await copy_now(machine, files), tmp_path) == overwritten()


@pytest.mark.needs("qemu-img")
async def test_one_that_stands_still_is_copied_at_once(machine, files, tmp_path) -> None:
    await overwrite(machine, WRITTEN)
    assert read_copy(await copy_now(machine, files), tmp_path) == overwritten()
    await check_none_left(machine)


@pytest.mark.needs("qemu-img")
async def test_what_another_has_begun_and_left_is_dropped(machine, files, tmp_path) -> None:
    """A process that was killed while it copied leaves a job that goes on, slow as it is."""
    async with machine._asking() as monitor:
        await scratch.open_target(monitor, files())
        await scratch.begin(monitor)
    await overwrite(machine, WRITTEN)
    assert read_copy(await copy_now(machine, files), tmp_path) == overwritten()
    await check_none_left(machine)


async def test_whoever_gives_up_leaves_nothing_of_it(machine, files) -> None:
    with pytest.raises(ZeroDivisionError):
        async with machine.copying_scratch(files()) as line:
            await begin(machine, line)
            raise ZeroDivisionError
    await check_none_left(machine)


async def test_what_cannot_be_copied_fails_the_guests_write_too(machine, files) -> None:
    """QEMU 7.2 has no other way (`on-cbw-error` of `blockdev-backup` came with 10.1). Later it can write."""
    copy = files()
    fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(HostError, match="could not be copied"):
        async with machine.copying_scratch(copy) as line:
            await begin(machine, line)
            await overwrite(machine, WRITTEN[:1])
            assert machine.log_tail().count("write failed") == 1
    await check_none_left(machine)
    await overwrite(machine, WRITTEN)
    assert machine.log_tail().count("write failed") == 1


class Refusing:
    """A monitor that refuses a speed, of a copy that is at `status`."""

    def __init__(self, status: str) -> None:
        self._status = status

    async def execute(self, command: str, **_arguments):
        if command == "block-job-set-speed":
            raise HostError("no")
        return [{"id": scratch.COPY, "status": self._status}]


async def test_one_that_stays_slow_is_told_and_one_that_is_through_is_well() -> None:
    with pytest.raises(HostError, match="no"):
        await scratch._hurry(Refusing("running"))
    for status in ("pending", "concluded"):
        await scratch._hurry(Refusing(status))
