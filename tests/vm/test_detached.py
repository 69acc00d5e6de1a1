"""Machines that outlive their maker: a broker owns them, and many use them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from datetime import datetime
from pathlib import Path

import pytest

import vmfork
from tests.at_terminal import AtTerminal
from tests.timing import wait_none
from tests.vm.cli_runner import COMMAND, Running
from tests.vm.cli_runner import vmfork as command
from tests.vm.test_handover import LIMIT_S, python, wait_ended
from vmfork.aio import VM
from vmfork.config import find_places
from vmfork.errors import ConfigError, GuestError, MachineEnded, NotOwner, StoreBusy, VMExists, VMNotFound
from vmfork.machine.folder import find_record, sweep_vms

pytestmark = [pytest.mark.vm, pytest.mark.kvm]


def folder_of(vm):
    return find_places().vms / vm.id


def broker_of(vm) -> int:
    return find_record(folder_of(vm)).owner_pid


async def end(vm) -> None:
    """The machine has ended, and nothing of it is left."""
    os.kill(broker_of(vm), signal.SIGKILL)
    await wait_ended(vm.pid)
    await vm.aclose()
    forget(vm)


def forget(vm) -> None:
    end = time.monotonic() + LIMIT_S
    while folder_of(vm).exists():
        assert time.monotonic() < end
        sweep_vms(find_places().vms)
        time.sleep(0.01)


async def test_a_client_does_what_its_owner_did_and_leaves_it_running(template) -> None:
    async with template.start(name="web", labels={"job": "7", "kind": "test"}, env={"GREETING": "hello"}) as vm:
        assert (vm.name, vm.labels) == ("web", {"job": "7", "kind": "test"})
        told = await vm.shell("echo $GREETING; cat /root/marker", timeout_s=LIMIT_S)
        assert told.stdout.split() == ["hello", "warm"]
        await vm.write_file("/root/kept", b"kept" * 100_000)
    async with VM.connect("web") as one, VM.connect(vm.id[:8]) as other:
        assert (one.id, other.id, one.generation, one.adoption) == (vm.id, vm.id, vm.generation, vm.adoption)
        assert await one.read_file("/root/kept") == b"kept" * 100_000
        mine, theirs = await asyncio.gather(one.exec(["cat"], input="mine"), other.exec(["cat"], input="theirs"))
        assert (mine.stdout, theirs.stdout) == ("mine", "theirs")
        for call in (one.resize(cpus=1), one.detach()):
            with pytest.raises(NotOwner, match="only the owner"):
                await call
        await other.pause()
        await other.resume()
        assert await one.measure_clock_skew() < 5
        assert one.memory().guest_rss > 0
        assert [r.id for r in await VM.list(label="job=7")] == [r.id for r in await VM.list(label="kind")] == [vm.id]
        assert await VM.list(label="job=8") == []
        with pytest.raises(VMExists, match=f"VM {vm.id} is named 'web'"):
            await template.start(name="web")
    async with VM.connect("web") as last:
        await end(last)
    with pytest.raises(VMNotFound, match="no living VM"):
        await VM.connect("web")


async def test_whoever_uses_it_when_it_ends_is_told(template) -> None:
    async with template.start() as vm, VM.connect(vm.id) as other:
        running = asyncio.ensure_future(other.exec(["sleep", "1000"]))
        await vm.ping()
        await end(vm)
        with pytest.raises(MachineEnded):
            await running


async def test_it_is_attached_by_one_owner_when_no_program_of_a_client_runs(template) -> None:
    async with template.start(name="taken") as vm:
        process = await vm.start(["sleep", "1000"])
        with pytest.raises(GuestError, match="still runs"):
            await VM.attach("taken")
        await process.aclose()
        owner = await VM.attach("taken")
        async with owner:
            assert (owner.id, owner.name) == (vm.id, "taken")
            assert find_record(folder_of(owner)).owner_pid == os.getpid()
            assert (await owner.exec(["echo", "mine"], timeout_s=LIMIT_S)).stdout == "mine\n"
            with pytest.raises(GuestError):
                await vm.exec(["true"], timeout_s=LIMIT_S)
            with pytest.raises(StoreBusy, match="in use"):
                await VM.connect("taken")
            await owner.resize(cpus=1)
    await wait_ended(owner.pid)
    assert not folder_of(owner).exists()


async def test_a_paused_machine_is_attached_as_paused(template) -> None:
    async with template.start() as vm:
        await vm.pause()
        async with VM.attach(vm.id) as owner:
            await owner.resume()
            assert (await owner.exec(["echo", "on"], timeout_s=LIMIT_S)).stdout == "on\n"


async def test_its_times_to_live_hold_while_nobody_looks(template) -> None:
    async with template.start(ttl_s=0.5) as lasting, template.start(idle_ttl_s=0.2) as idle:
        await wait_ended(lasting.pid)
        assert idle.facts.identity is not None
        await idle.ping()
    await wait_ended(idle.pid)
    reasons = [json.loads((folder_of(vm) / "ended.json").read_text())["reason"] for vm in (lasting, idle)]
    assert reasons == ["its time to live is over", "nobody used it for as long as it may be idle"]
    forget(lasting)
    forget(idle)


@pytest.mark.parametrize(
    "given",
    [
        {"ttl_s": -1},
        {"idle_ttl_s": float("nan")},
        {"ttl_s": "an hour"},
        {"name": "../up"},
        {"name": "0123456789ab"},
        {"name": "x" * 65},
        {"labels": {"": "x"}},
        {"labels": {"a=b": "x"}},
        {"labels": {"a": 1}},
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_refused_before_a_fork_is_made(template, given) -> None:
    before = {record.id for record in await VM.list()}
    with pytest.raises(ConfigError, match=next(iter(given))):
        await template.start(**given)
    # Another test's machine may end meanwhile.
    assert {record.id for record in await VM.list()} <= before


async def test_what_names_none_of_two_is_not_found(template) -> None:
    async with AsyncExitStack() as always:
        vms = [await always.enter_async_context(template.start()) for _ in range(2)]
        with pytest.raises(VMNotFound):
            await VM.connect("")
        with pytest.raises(VMNotFound):
            await VM.connect("no-such-vm")
        for vm in vms:
            await end(vm)


STARTER = """
import sys, vmfork
with vmfork.Template.open(sys.argv[1]).start(name=sys.argv[2]) as vm:
    print(vm.id, flush=True)
    sys.stdin.read()
"""


async def test_of_many_that_want_one_name_one_gets_it(template) -> None:
    argv = [sys.executable, "-c", STARTER, template.name, "raced"]
    count = 10 if len(os.sched_getaffinity(0)) > 1 else 4  # a test host has one, and it is emulated
    with ExitStack() as stack:
        starters = [subprocess.Popen(argv, stdout=-1, stderr=-1, stdin=-1) for _ in range(count)]
        for starter in starters:
            stack.callback(starter.kill)
        ended = [await asyncio.to_thread(starter.communicate, b"", LIMIT_S) for starter in starters]
    won = [out for out, err in ended if out]
    lost = [err for out, err in ended if not out]
    assert len(won) == 1, ended
    assert all(b"VMExists" in err for err in lost), lost
    async with VM.connect("raced") as vm:
        assert vm.id == won[0].decode().strip()
        await end(vm)


async def test_its_starter_is_killed_and_another_connects(template) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, template.name, "orphan"], stdout=-1, stdin=-1)
    assert starter.stdout is not None
    await asyncio.to_thread(starter.stdout.readline)
    starter.kill()
    await asyncio.to_thread(starter.communicate)
    async with VM.connect("orphan") as vm:
        assert (await vm.exec(["echo", "alive"], timeout_s=LIMIT_S)).stdout == "alive\n"
        await end(vm)


def test_the_blocking_form(template_name) -> None:
    with vmfork.Template.open(template_name).start(name="blocking", idle_ttl_s=LIMIT_S) as vm:
        with vmfork.VM.connect("blocking") as other:
            assert other.exec(["echo", "one"]).stdout == "one\n"
        assert vm.exec(["echo", "two"]).stdout == "two\n"
    with vmfork.VM.attach("blocking") as owner:
        assert owner.exec(["echo", "three"]).stdout == "three\n"


USER = """
import os, sys, random, vmfork
with vmfork.VM.connect(sys.argv[1]) as vm:
    for turn in range(1000):
        data = os.urandom(random.randrange(200_000))
        assert vm.exec(["cat"], input=data).stdout_bytes == data
        print(turn, flush=True)
"""


async def test_users_killed_at_random_leave_it_to_the_others(template) -> None:
    async with template.start() as vm:
        users = [subprocess.Popen([sys.executable, "-c", USER, vm.id], stdout=-1) for _ in range(5)]
        for user in users:
            assert user.stdout is not None
            for _ in range(random.randrange(1, 5)):
                await asyncio.to_thread(user.stdout.readline)
        for user in random.sample(users, len(users)):
            user.kill()
            await asyncio.to_thread(user.communicate)
            assert (await vm.exec(["echo", "on"], timeout_s=LIMIT_S)).stdout == "on\n"
        await wait_none(vm, "^cat$")
        await end(vm)


def test_a_machine_that_has_one_owner_has_no_clients(template_name) -> None:
    with vmfork.Template.open(template_name).fork() as vm:
        done = python("import sys, vmfork; vmfork.VM.connect(sys.argv[1])", vm.id)
        assert b"StoreBusy" in done.stderr


def test_exec_ends_as_the_command_did(template_name) -> None:
    vm_id = command("start", "-t", template_name, "-e", "FROM=start").check().out.strip()
    try:
        done = command("exec", vm_id[:10], "sh", "-c", "cat; echo $FROM$MORE >&2; exit 7", input=b"in")
        assert (done.status, done.raw, done.err) == (7, b"in", "start\n")
        assert command("exec", "-e", "MORE=!", "-w", "/tmp", vm_id, "sh", "-c", "echo $MORE; pwd").out == "!\n/tmp\n"
        assert command("exec", vm_id, "no-such-program").status == 127
        assert command("exec", "--timeout", "0.2", vm_id, "sleep", "1000").status == 124
        kept = json.loads(command("exec", "--json", vm_id, "sh", "-c", "echo out; exit 3").out)
        assert (kept["exit_code"], kept["stdout"], kept["error"]) == (3, "out\n", None)
        assert command("exec", "no-such-machine", "true").status == 125
        assert command("exec", vm_id).status == 125
        running = Running("exec", vm_id, "sh", "-c", "echo $$; exec sleep 1000")
        running.wait_for("\n", fd=1)
        running.process.kill()
        running.process.communicate(timeout=LIMIT_S)
        # What was killed is gone once it was scheduled once more.
        gone = "while pgrep -x sleep; do :; done"
        assert command("exec", "--timeout", str(LIMIT_S), vm_id, "sh", "-c", gone).status == 0
    finally:
        command("stop", "--grace", "0", vm_id).check()


def shown(*argv: str) -> dict | list:
    return json.loads(command(*argv, "--json").check().out)


def test_the_commands(template_name) -> None:
    start = ("start", "-t", template_name, "--name", "cli", "--label", "job=8", "--ttl", "1h", "-e", "GREETING=hello")
    vm_id = command(*start).check().out.strip()
    try:
        taken = command(*start)
        assert taken.status == 1
        assert f"error: VM {vm_id} is named 'cli'" in taken.err
        with vmfork.VM.connect("cli") as vm:
            assert vm.shell("echo $GREETING; echo to the console > /dev/console").stdout == "hello\n"
        (listed,) = shown("ps", "--filter", "job=8")
        assert (listed["id"], listed["name"], listed["labels"], listed["state"]) == (
            vm_id,
            "cli",
            {"job": "8"},
            "shared",
        )
        assert shown("ps", "--filter", "job=9") == []
        assert vm_id in command("ps").check().out
        told = shown("show", vm_id[:6])
        assert told["id"] == vm_id
        left_s = datetime.fromisoformat(told["ends_at"]).timestamp() - time.time()
        assert 0 < left_s <= 3600
        assert "ends_at" in command("show", "cli").check().out
        assert "to the console" in shown("logs", "cli")["console"]
        command("exec", "-d", "cli", "echo", "no command of its start").check()
        assert "to the console" in shown("logs", "cli")["console"]
        assert command("pause", "cli").check().out == f"{vm_id}\n"
        assert shown("show", "cli")["paused"] is True
        assert "shared, paused" in command("ps").check().out
        waiting = Running("exec", "cli", "echo", "ran on")
        waiting.wait_for(f"note: machine {vm_id} is paused")
        assert command("resume", "cli").check().out == f"{vm_id}\n"
        assert waiting.end().check().out == "ran on\n"
        assert shown("show", "cli")["paused"] is False
        assert command("logs", "cli").check().out.count("to the console") == 1
        waiting = Running("wait", "cli", "--json")
    finally:
        assert command("stop", "cli").check().out == f"{vm_id}\n"
    out, err = waiting.process.communicate(timeout=LIMIT_S)
    assert json.loads(out)["reason"] == "it was stopped", err
    assert shown("ps", "--filter", "job=8") == []
    (ended,) = shown("ps", "-a", "--filter", "job=8")
    assert (ended["id"], ended["state"], ended["reason"]) == (vm_id, "ended", "it was stopped")
    assert command("wait", "cli").check().out == "it was stopped\n"
    assert "to the console" in command("logs", vm_id).check().out
    assert command("stop", "cli").status == 1


@pytest.mark.parametrize(
    "argv",
    [
        ("--ttl", "0"),
        ("--ttl", "-1"),
        ("--ttl", "soon"),
        ("--idle-ttl", "0s"),
        ("--label", "novalue"),
        ("--name", "a b"),
    ],
    ids=" ".join,
)
def test_wrong_input_of_start_is_named(template_name, argv) -> None:
    done = command("start", "-t", template_name, *argv)
    assert (done.status, done.out) == (2, "")
    assert argv[0].strip("-") in done.err


def keeper_of(vm) -> int:
    """Its command line tells whose it is."""
    wanted = b"vmfork-keeper %d" % vm.pid
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(wanted):
                return int(path.parent.name)
    raise AssertionError("no keeper")


async def test_its_keeper_is_killed_and_the_next_sweep_ends_it(template) -> None:
    """The keeper's promise is gone with it (decision 5); nothing is left all the same."""
    async with template.start() as vm:
        os.kill(keeper_of(vm), signal.SIGKILL)
        await asyncio.to_thread(forget, vm)
        await wait_ended(vm.pid)


async def test_qemu_is_killed_and_its_clients_are_told(template) -> None:
    async with template.start() as vm:
        os.kill(vm.pid, signal.SIGKILL)
        with pytest.raises(MachineEnded):
            await vm.exec(["sleep", "1000"])
        await asyncio.to_thread(forget, vm)


def test_a_shell_and_a_command_at_a_terminal_leave_it_to_the_others(template_name) -> None:
    vm_id = command("start", "-t", template_name, "--name", "shared").check().out.strip()
    try:
        with AtTerminal(*COMMAND, "shell", "shared") as at:
            at.wait_for("# ")
            at.type("echo in the sh''ell\n")
            at.wait_for("in the shell")
            assert command("exec", vm_id, "pgrep", "-x", "bash").status == 0
            at.type("exit 3\n")
            assert (at.end()[0], at.is_as_before) == (3, True)
        with AtTerminal(*COMMAND, "exec", "-it", vm_id, "sh", "-c", "tty; read line; exit $line") as at:
            at.wait_for("/dev/pts/")
            at.type("5\n")
            assert (at.end()[0], at.is_as_before) == (5, True)
        assert command("exec", vm_id, "true").status == 0
    finally:
        command("stop", "--grace", "0", vm_id).check()


def test_top_tells_what_each_takes_and_counts_what_is_shared_once(template_name) -> None:
    with vmfork.Template.open(template_name).fork() as one, vmfork.Template.open(template_name).fork() as other:
        told = shown("top")
        uses = {each["id"]: each for each in told["machines"]}
        assert {one.id, other.id} <= set(uses)
        assert 0 < uses[one.id]["shared_bytes"] <= told["shared_bytes"]
        assert told["shared_bytes"] < sum(each["shared_bytes"] for each in told["machines"])
        assert told["own_bytes"] >= sum(uses[vm.id]["own_bytes"] for vm in (one, other)) > 0
        assert one.id in command("top", "--once").check().out
        with AtTerminal(*COMMAND, "top", "--interval", "100ms") as at:
            at.wait_for(other.id)
            at.wait_for("%")
            at.type("\x03")
            assert at.end()[0] == 130
    assert command("top", "--interval", "0").status == 2


def test_stop_ends_a_machine_that_waits_for_an_owner_and_none_that_has_one(template_name) -> None:
    with vmfork.Template.open(template_name).fork() as vm:
        taken = command("stop", vm.id)
        assert (taken.status, f"process {os.getpid()}" in taken.err) == (1, True)
        handle = vm.detach(ttl_s=600)
    assert command("stop", "--grace", "0", handle.id).check().out == f"{handle.id}\n"
    assert not handle.path.exists()
