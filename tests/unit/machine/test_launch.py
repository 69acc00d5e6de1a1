"""A launch that fails says why, with all there is to know, and leaves nothing: with the real QEMU, without a Linux."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.timing import with_more_time
from tests.tiny_kernel import GREETING, tiny_kernel
from vmfork.adopt.todo import Thaw
from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import LaunchError
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.qemu import find_qemu
from vmfork.image import Image
from vmfork.machine import stall
from vmfork.machine.facts import Descent, Make
from vmfork.machine.folder import find_record
from vmfork.machine.launch import Frozen, boot_base, restore_base
from vmfork.machine.plan import Plan, make_plan
from vmfork.machine.stall import unless_stuck

LIMIT_S = 30.0


@pytest.fixture
def places(tmp_path):
    """Places of this test's own, where in the end there is no machine."""
    places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
    yield places
    assert list(places.vms.iterdir()) == []
    assert [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and str(places.vms) in command_of(pid)] == []


def command_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture
async def plan(tmp_path) -> Plan:
    """The tiny guest: its machine runs, and no agent ever answers."""
    need("qemu")
    kernel, initramfs = tmp_path / "kernel", tmp_path / "initramfs"
    kernel.write_bytes(tiny_kernel())
    initramfs.write_bytes(b"empty")
    image = Image(
        name="tiny",
        recipe="0",
        bare=False,
        digest="0",
        kernel=kernel,
        initramfs=initramfs,
        kernel_release="0",
        kernel_sha256=hashlib.sha256(tiny_kernel()).hexdigest(),
        initramfs_sha256="0",
        arch="x86_64",
        suite="trixie",
        requested=("bash",),
        packages={},
        unpacked_bytes=0,
        min_memory_mib=64,
        created_at="",
        kernel_bytes=0,
        initramfs_bytes=0,
    )
    config = VMConfig(memory_mib=64, boot_timeout_s=20.0)
    binary = await find_qemu()
    return await make_plan(config, image=image, binary=binary, accel="tcg")


async def failed_boot(plan: Plan, places: Places, *, watch=None) -> LaunchError:
    with pytest.raises(LaunchError) as failed:
        await boot_base(plan, instance=Instance(places), watch=watch)
    return failed.value


async def test_an_option_qemu_refuses(plan, places) -> None:
    error = await failed_boot(replace(plan, hardware=replace(plan.hardware, cpu_model="no-such-cpu")), places)
    assert error.exit_code == 1
    assert "QEMU exit status 1" in str(error)
    assert error.argv[0] == str(plan.binary.path)
    assert error.argv[error.argv.index("-cpu") + 1] == "no-such-cpu"
    assert "unable to find CPU model 'no-such-cpu'" in error.log_tail
    assert all(part in error.details() for part in ("command: ", "-cpu no-such-cpu", "QEMU log:\nqemu-system"))


async def test_an_emulator_that_went_away(plan, places, tmp_path) -> None:
    error = await failed_boot(replace(plan, binary=replace(plan.binary, path=tmp_path / "gone")), places)
    assert (error.exit_code, error.argv[0]) == (127, str(tmp_path / "gone"))
    assert "gone" in error.log_tail


async def test_a_guest_that_resets(plan, places) -> None:
    plan.image.kernel.write_bytes(tiny_kernel(resets=True))
    error = await failed_boot(plan, places)
    assert error.exit_code == 0
    assert GREETING.decode() in error.console_tail
    assert "guest console:" in error.details()


async def test_a_watched_guest_that_hangs(plan, places, monkeypatch) -> None:
    async def wait(limit_s: float) -> None:
        monkeypatch.setattr(stall, "STALL_LIMIT_S", limit_s)
        error = await failed_boot(plan, places, watch=unless_stuck)
        # One that goes on for longer at first, as on a busy host, may rest for longer.
        assert error.reason == f"the guest stood still for {limit_s:g} s"
        assert GREETING.decode() in error.console_tail

    plan.image.kernel.write_bytes(tiny_kernel(hangs=True))
    await with_more_time(wait, 1.0, 20.0)


async def test_a_watched_guest_that_prints_is_waited_for(plan, places, monkeypatch) -> None:
    monkeypatch.setattr(stall, "STALL_LIMIT_S", 1.0)
    error = await failed_boot(replace(plan, boot_timeout_s=4.0), places, watch=unless_stuck)
    assert "did not answer within 4 s" in error.reason


async def test_a_guest_that_says_nothing_in_time(plan, places) -> None:
    async def wait(limit_s: float) -> None:
        error = await failed_boot(replace(plan, boot_timeout_s=limit_s), places)
        assert error.exit_code is None
        assert f"did not answer within {limit_s:g} s" in error.reason
        assert "boot_timeout_s" in error.hint
        # What it says after its greeting depends on how fast it is, and only the end is kept.
        assert error.console_tail

    await with_more_time(wait, 1.0, 20.0)


async def started(places: Places) -> int:
    """The pid of the machine that is being launched."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            for folder in places.vms.iterdir() if places.vms.is_dir() else ():
                if (record := find_record(folder)) is not None:
                    return record.pid
            await asyncio.sleep(0.01)


async def test_qemu_killed_while_the_guest_boots(plan, places) -> None:
    booting = asyncio.ensure_future(boot_base(plan, instance=Instance(places)))
    os.kill(await started(places), signal.SIGKILL)
    with pytest.raises(LaunchError) as failed:
        await asyncio.wait_for(booting, LIMIT_S)
    assert failed.value.exit_code == -signal.SIGKILL
    assert "lack of memory" in failed.value.hint


async def test_a_cancelled_boot_leaves_no_process(plan, places) -> None:
    booting = asyncio.ensure_future(boot_base(plan, instance=Instance(places)))
    pid = await started(places)
    booting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await booting
    assert ProcessIdentity.of(pid) is None


@pytest.mark.parametrize("state", [b"", b"not a state file" * 100], ids=["empty", "nonsense"])
async def test_device_state_that_is_none(plan, places, tmp_path, state) -> None:
    (tmp_path / "state").write_bytes(state)
    (tmp_path / "memory").write_bytes(b"")
    os.truncate(tmp_path / "memory", 64 << 20)
    with (tmp_path / "state").open("rb") as state_file, (tmp_path / "memory").open("r+b") as memory:
        frozen = Frozen(
            template="t",
            image="tiny",
            hardware=plan.hardware,
            memory_fd=memory.fileno(),
            state_fd=state_file.fileno(),
            thaw=Thaw(),
            limits=plan.limits,
            make=Make(traits=plan.traits, qemu_path=str(plan.binary.path), qemu_stamp=plan.binary.stamp),
            descent=Descent(),
        )
        base = await restore_base(frozen, binary=plan.binary, instance=Instance(places))
        with pytest.raises(LaunchError) as failed:
            await base.adopt(timeout_s=20.0)
    assert failed.value.exit_code == 1
    assert "load of migration failed" in failed.value.log_tail
    assert "-incoming" in failed.value.argv
