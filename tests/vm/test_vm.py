"""What every machine can do, however it came to be."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.timing import held_time, least_skew_s
from vmfork.aio import VM, Factory
from vmfork.errors import Closed, ConfigError, DeadlineExceeded, ExecError, GuestFileError, LimitExceeded, MachineEnded

pytestmark = [pytest.mark.vm, pytest.mark.qemu, pytest.mark.kvm]


async def test_programs_files_and_identity(any_vm) -> None:
    result = await any_vm.shell("echo out; echo err >&2; exit 3", timeout_s=30)
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    with pytest.raises(ExecError) as failed:
        result.check()
    assert failed.value.exit_code == 3
    assert (await any_vm.exec(["cat"], input="text")).stdout == "text"
    assert (await any_vm.exec(["sh", "-c", "pwd; echo $A"], cwd="/tmp", env={"A": "b"})).stdout == "/tmp\nb\n"
    assert (await any_vm.shell("kill -TERM $$")).exit_code == 128 + 15
    assert (await any_vm.shell("echo $HOME")).stdout == "/root\n"
    assert (await any_vm.shell("echo $HOME $A", env={"A": "b"}, clean_env=True)).stdout == "b\n"
    with pytest.raises(ExecError) as missing:
        await any_vm.exec(["no-such-program"])
    assert missing.value.exit_code == 127
    with pytest.raises(ExecError) as refused:
        await any_vm.exec(["/etc/passwd"])
    assert refused.value.exit_code == 126
    with pytest.raises(ConfigError):
        await any_vm.exec("a line of shell")
    script = "import json, ssl, sqlite3, hashlib; print(json.dumps({'ok': 1}))"
    assert (await any_vm.exec(["python3", "-c", script], timeout_s=60, check=True)).stdout == '{"ok": 1}\n'
    data = os.urandom(1 << 20)
    await any_vm.write_file("/tmp/deep/file", data, parents=True, mode=0o600)
    assert await any_vm.read_file("/tmp/deep/file") == data
    with pytest.raises(GuestFileError):
        await any_vm.read_file("/nowhere")
    seen = await any_vm.shell("hostname; cat /etc/machine-id /run/vmfork/generation; nproc")
    assert seen.stdout.split() == [any_vm.hostname, any_vm.machine_id, any_vm.generation, "1"]
    assert any_vm.adoption.skew_bound_s <= 0.020
    assert any_vm.accel in ("kvm", "tcg")


async def test_what_the_guest_sends_at_once_has_a_limit(any_vm) -> None:
    for call in (any_vm.exec(["yes"], max_output=100_000), any_vm.shell("yes >&2", max_output=100_000)):
        with pytest.raises(LimitExceeded) as told:
            await call
        assert (told.value.stdout + told.value.stderr) == b"y\n" * 50_000
    assert (await any_vm.shell("pgrep -x yes", timeout_s=30)).exit_code == 1
    await any_vm.write_file("/tmp/f", b"x" * 100_000)
    assert await any_vm.read_file("/tmp/f", max_bytes=100_000) == b"x" * 100_000
    with pytest.raises(LimitExceeded):
        await any_vm.read_file("/tmp/f", max_bytes=99_999)
    with pytest.raises(LimitExceeded):
        await any_vm.list_dir("/usr/bin", max_bytes=100)


async def test_what_gives_a_machine_or_a_program_can_be_entered(template) -> None:
    async with template.fork() as vm, vm.start(["sleep", "60"]) as process:
        assert (await vm.exec(["true"])).ok
    assert process.has_ended
    assert await VM.list() == []
    async with VM.boot() as vm:
        handle = await vm.detach()
    async with VM.attach(handle) as vm, Factory() as factory, factory.get_vm() as other:
        assert vm.id != other.id
    assert await VM.list() == []


async def test_a_time_limit_kills_the_command_and_not_the_machine(any_vm) -> None:
    with held_time() as clock:
        running = asyncio.ensure_future(any_vm.shell("echo begun; touch /run/begun; sleep 1000", timeout_s=60))
        while not await any_vm.exists("/run/begun"):
            pass
        clock.pass_by(60)
        with pytest.raises(DeadlineExceeded) as late:
            await running
    await any_vm.remove("/run/begun")
    assert late.value.stdout == b"begun\n"
    assert isinstance(late.value, TimeoutError)
    assert (await any_vm.exec(["true"], timeout_s=30)).ok


async def test_pause_holds_the_guest_and_resume_brings_its_clock_up_to_date(fork) -> None:
    await fork.pause()
    with pytest.raises(DeadlineExceeded):
        await fork.ping(timeout_s=0.5)
    await fork.resume()
    assert (await fork.exec(["true"], timeout_s=30)).ok
    assert await least_skew_s(fork) <= 0.020


async def test_a_killed_machine_fails_its_calls_at_once(template) -> None:
    async with await template.fork() as vm:
        call = asyncio.ensure_future(vm.exec(["sleep", "60"]))
        await vm.ping()
        vm._running.machine.identity.kill()
        for attempt in (call, vm.ping()):
            with pytest.raises(MachineEnded) as ended:
                await asyncio.wait_for(attempt, 60)
            assert ended.value.exit_code == -signal.SIGKILL
            assert "memory" in ended.value.hint


@pytest.mark.parametrize(("key", "exit_code", "said"), [("c", 0, "sysrq triggered crash"), ("o", 0, "Power Off")])
async def test_a_guest_that_goes_down_is_told_with_its_console(template, key, exit_code, said) -> None:
    async with await template.fork() as vm:
        with pytest.raises(MachineEnded) as ended:
            await vm.shell(f"echo {key} > /proc/sysrq-trigger; sleep 60", timeout_s=30)
        assert ended.value.exit_code == exit_code
        assert said in ended.value.details()


async def test_closing_leaves_nothing(template, instance) -> None:
    async with await template.fork() as vm:
        pid, folder = vm.pid, instance.vms / vm.id
        assert folder.is_dir()
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()
    with pytest.raises(Closed):
        await vm.exec(["true"])
