"""Programs in the background of a machine that stands alone: found again, read, signalled, awaited, by any client."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

import vmfork
from tests.vm.cli_runner import Running
from tests.vm.cli_runner import vmfork as command
from tests.vm.test_detached import end
from tests.vm.test_handover import LIMIT_S
from vmfork.aio import VM
from vmfork.errors import Closed, ConfigError, ExecError, GuestError, MachineEnded
from vmfork.wire.frame import Channel

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


async def output_of(process) -> dict[Channel, bytes]:
    found = {Channel.STDOUT: b"", Channel.STDERR: b""}
    async for channel, data in process.output():
        found[channel] += data
    return found


async def test_another_client_finds_it_after_its_starter_has_left(template) -> None:
    async with template.start(env={"GREETING": "hello"}) as vm:
        script = "echo $GREETING; echo error >&2; mkfifo /tmp/go; read line < /tmp/go; echo $line; exit 7"
        async with await vm.start(["sh", "-c", script], background=True) as process:
            pid = process.pid
    async with VM.connect(vm.id) as one, VM.connect(vm.id) as other:
        (listed,) = await one.programs()
        found = await other.program(pid)
        assert (listed.pid, found.pid, found.name) == (pid, pid, listed.name)
        await one.shell("while [ ! -p /tmp/go ]; do sleep 0.01; done; echo last > /tmp/go", timeout_s=LIMIT_S)
        assert await output_of(found) == {Channel.STDOUT: b"hello\nlast\n", Channel.STDERR: b"error\n"}
        assert (await listed.wait(timeout_s=LIMIT_S)).exit_code == 7
        assert found.has_ended
        with pytest.raises(GuestError, match="no program in the background"):
            await one.program(1)
        await end(one)


async def test_it_is_signalled_and_a_reader_follows_it(template) -> None:
    async with template.start() as vm:
        process = await vm.start(["sh", "-c", "while :; do echo tick; sleep 0.02; done"], background=True)
        seen = b""
        async for _, data in process.output():
            seen += data
            if seen.count(b"tick\n") >= 3:
                break
        with pytest.raises(vmfork.DeadlineExceeded):
            await process.wait(timeout_s=0.1)
        with pytest.raises(GuestError, match="still runs"):
            await VM.attach(vm.id)
        await process.kill("TERM")
        status = await process.wait(timeout_s=LIMIT_S)
        assert (status.kind, status.number) == ("signal", signal.SIGTERM)
        await process.kill()
        with pytest.raises(Closed):
            await process.write_stdin(b"x")
        await end(vm)


async def test_what_cannot_be_in_the_background_is_refused(template) -> None:
    async with template.start() as vm:
        with pytest.raises(ExecError) as error:
            await vm.start(["no-such-program"], background=True)
        assert error.value.exit_code == 127
        for wrong in ({"stdin": True}, {"pty": (24, 80)}):
            with pytest.raises(ConfigError, match="background"):
                await vm.start(["true"], background=True, **wrong)
        with pytest.raises(ExecError, match="too long"):
            await vm.start(["echo", "x" * 100_000, "x" * 100_000, "x" * 100_000], background=True)
        assert await vm.programs() == []
        async with await template.fork() as fork:
            with pytest.raises(ConfigError, match="stands alone"):
                await fork.start(["true"], background=True)
        await end(vm)


async def test_of_seventy_one_after_the_other_the_last_64_are_kept(template) -> None:
    async with template.start() as vm:
        for number in range(70):
            process = await vm.start(["echo", str(number)], background=True)
            await process.wait(timeout_s=LIMIT_S)
        kept = await vm.programs()
        assert len(kept) == 64
        assert await output_of(kept[-1]) == {Channel.STDOUT: b"69\n", Channel.STDERR: b""}
        await end(vm)


async def test_a_machine_that_ends_ends_it_and_tells_whoever_waits(template) -> None:
    async with template.start() as vm, VM.connect(vm.id) as other:
        process = await other.start(["sleep", "1000"], background=True)
        waiting = asyncio.ensure_future(process.wait())
        await other.ping()
        await end(vm)
        with pytest.raises(MachineEnded):
            await waiting


def test_the_blocking_form(template_name) -> None:
    with vmfork.Template.open(template_name).start() as vm:
        process = vm.start(["sh", "-c", "echo one; exit 3"], background=True)
        assert [data for _, data in process.output()] == [b"one\n"]
        assert process.wait().exit_code == 3
        assert [each.pid for each in vm.programs()] == [process.pid]
        assert vm.program(process.pid).wait().exit_code == 3
        vm.stop(grace_s=0)


def test_a_machine_begins_with_a_command(template_name) -> None:
    script = "echo out; echo err >&2; sleep 0.3; echo last; exit 3"
    vm_id = command("start", "-t", template_name, "-w", "/tmp", "--", "sh", "-c", script).check().out.strip()
    try:
        followed = command("logs", "-f", vm_id).check()
        assert (followed.out, followed.err) == ("out\nlast\n", "err\n")
        told = json.loads(command("logs", vm_id, "--json").check().out)
        assert (told["exit_code"], told["stdout"], told["stderr"]) == (3, "out\nlast\n", "err\n")
        (shown,) = json.loads(command("show", vm_id, "--json").check().out)["programs"]
        assert (shown["exit_code"], shown["argv"][0]) == (3, "sh")
        pid = command("exec", "-d", vm_id, "sh", "-c", "echo second; exec sleep 1000").check().out.strip()
        reader = Running("logs", "-f", "--pid", pid, vm_id)
        reader.wait_for("second", fd=1)
        assert "exit status 3" in command("show", vm_id).check().out
        command("exec", vm_id, "kill", pid).check()
        reader.end()
        console = Running("logs", "-f", "--console", vm_id)
        command("exec", vm_id, "sh", "-c", "echo on the console > /dev/console").check()
        console.wait_for("on the console", fd=1)
        assert command("logs", "--pid", "1", vm_id).status == 1
    finally:
        command("stop", "--grace", "0", vm_id).check()
    assert console.end().status == 0
    assert command("logs", vm_id).check().out == "out\nlast\n"


def test_run_leaves_it_running(template_name) -> None:
    vm_id = command("run", "-d", "-t", template_name, "-e", "A=b", "sh", "-c", "echo $A").check().out.strip()
    assert command("logs", "-f", vm_id).check().out == "b\n"
    command("stop", "--grace", "0", vm_id).check()
    refused = command("run", "-d", "--timeout", "3", "-t", template_name, "true")
    assert (refused.status, "timeout" in refused.err) == (125, True)


def test_a_command_that_cannot_be_started_leaves_no_machine(template_name) -> None:
    before = json.loads(command("ps", "--json").check().out)
    done = command("start", "-t", template_name, "--name", "none", "--", "no-such-program")
    assert (done.status, done.out) == (1, "")
    assert "no-such-program" in done.err
    assert json.loads(command("ps", "--json").check().out) == before
