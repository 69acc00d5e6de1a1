"""A machine goes back to what it was, in place, as often as is wanted."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import vmfork
from tests.vm.test_live_fork import ECHO, count, start_counting, wait_counted
from vmfork.aio import VM, Template
from vmfork.config import VMConfig
from vmfork.errors import Closed, ConfigError, HostError, MachineEnded, RolledBack
from vmfork.freeze import rollback

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 30


async def test_it_is_what_it_was_under_its_id_and_as_unique_as_a_fork(any_vm) -> None:
    await any_vm.write_file("/root/who", b"before")
    await start_counting(any_vm)
    async with any_vm.checkpoint() as point:
        reached = (await count(any_vm))[-1]
        was = {name: getattr(any_vm, name) for name in ("id", "hostname", "generation", "machine_id", "pid")}
        drawn = {(await any_vm.exec(["head", "-c16", "/dev/urandom"])).stdout_bytes}
        await any_vm.write_file("/root/who", b"after")
        await any_vm.rollback(point)
        assert await any_vm.read_file("/root/who") == b"before"
        # It counts on from the moment of the checkpoint, without a gap or a repeat.
        numbers = await wait_counted(any_vm, reached + 5)
        assert numbers == list(range(1, len(numbers) + 1))
        drawn.add((await any_vm.exec(["head", "-c16", "/dev/urandom"])).stdout_bytes)
        assert len(drawn) == 2
        assert await any_vm.measure_clock_skew() < 1.0
        assert (any_vm.id, any_vm.hostname) == (was["id"], was["hostname"])
        assert not {any_vm.generation, any_vm.machine_id, any_vm.pid} & {*was.values()}
        assert (await any_vm.exec(["cat", "/run/vmfork/generation"])).stdout.strip() == any_vm.generation
        assert [(record.id, record.pid) for record in await VM.list()] == [(any_vm.id, any_vm.pid)]


async def test_it_goes_back_to_one_checkpoint_twenty_times(fork) -> None:
    await fork.write_file("/root/it", b"here")
    seen = {fork.generation}
    async with fork.checkpoint() as point:
        for number in range(20):
            assert not await fork.exists("/root/nonce")
            await fork.write_file("/root/nonce", b"%d" % number)
            await fork.rollback(point)
            seen.add(fork.generation)
        assert await fork.read_file("/root/it") == b"here"
        assert not await fork.exists("/root/nonce")
        assert (await fork.exec(["echo", "on"])).stdout == "on\n"
    assert len(seen) == 21


async def end_machine(vm, how: str) -> None:
    """It has ended: killed, or by what sysrq asks of its guest."""
    if how == "killed":
        os.kill(vm.pid, signal.SIGKILL)
    with pytest.raises(MachineEnded):
        await vm.shell(f"echo {how} > /proc/sysrq-trigger; sleep 60", timeout_s=LIMIT_S)


async def test_of_several_checkpoints_it_goes_to_any_in_any_order(fork) -> None:
    points = []
    for name in "abc":
        await fork.write_file("/root/who", name.encode())
        points.append(await fork.checkpoint())
    for index in (0, 2, 1, 1, 0):
        await fork.rollback(points[index])
        assert await fork.read_file("/root/who") == b"abc"[index : index + 1]
        # What it was taken from is not needed: this one is of a machine that went back.
        points[index] = await fork.checkpoint()
    (child,) = await fork.fork(1)
    async with child:
        assert await child.read_file("/root/who") == b"a"


# What its guest is asked by sysrq: o powers off, c crashes.
@pytest.mark.parametrize("how", ["killed", "o", "c"])
async def test_it_comes_back_after_it_has_ended(fork, how) -> None:
    await fork.write_file("/root/it", b"here")
    async with fork.checkpoint() as point:
        await end_machine(fork, how)
        await fork.rollback(point)
        assert await fork.read_file("/root/it") == b"here"
        assert (await fork.exec(["echo", "on"])).stdout == "on\n"


async def test_what_was_in_use_ends_by_a_named_error(fork) -> None:
    await fork.write_file("/root/echo.py", ECHO.encode())
    await fork.shell("setsid python3 /root/echo.py </dev/null >/dev/null 2>&1 &", check=True)
    await fork.wait_for_port(8000)
    async with fork.checkpoint() as point, await fork.open_connection(8000) as connection:
        await connection.write(b"one\n")
        assert await connection.read() == b"one\n"
        process = await fork.start(["sleep", "1000"])
        running = asyncio.create_task(fork.exec(["sleep", "1000"]))
        waiting = asyncio.create_task(connection.read())
        await fork.ping()
        await fork.rollback(point)
        for use in (running, waiting, asyncio.ensure_future(process.wait()), asyncio.ensure_future(connection.read())):
            with pytest.raises(RolledBack, match=fork.id):
                await asyncio.wait_for(use, LIMIT_S)
        assert not (await fork.exec(["pgrep", "sleep"])).stdout


async def test_a_forwarded_port_stays_and_who_connects_meanwhile_waits(fork) -> None:
    await fork.write_file("/root/echo.py", ECHO.encode())
    await fork.shell("setsid python3 /root/echo.py </dev/null >/dev/null 2>&1 &", check=True)
    await fork.wait_for_port(8000)
    async with fork.checkpoint() as point, await fork.forward(8000) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.host_port)
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        back = asyncio.create_task(fork.rollback(point))
        while fork._running._agent.lost is None:
            await asyncio.sleep(0)
        late_reader, late = await asyncio.open_connection("127.0.0.1", port.host_port)
        late.write(b"two\n")
        assert await asyncio.wait_for(late_reader.readline(), LIMIT_S) == b"two\n"
        await back
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readline(), LIMIT_S)
        for each in (writer, late):
            each.close()


async def test_it_may_reach_what_it_was_last_allowed_to(fork) -> None:
    async with fork.checkpoint() as point:
        await fork.set_network(vmfork.Allow("example.org:443"))
        await fork.rollback(point)
        assert fork.network.entries == ("example.org:443",)
        assert "127.0.0.1:3128" in (await fork.exec(["env"])).stdout
        await end_machine(fork, "killed")
        await fork.rollback(point)
        assert fork.network.entries == ("example.org:443",)
        await fork.rollback(point, network="none")
        assert fork.network == "none"
        assert "127.0.0.1:3128" not in (await fork.exec(["env"])).stdout


async def test_it_has_the_environment_and_the_files_that_it_is_given(template) -> None:
    async with await template.fork(env={"FIRST": "1"}) as vm, vm.checkpoint() as point:
        await vm.rollback(point, env={"SECOND": "2"}, files={"/root/given": b"given"})
        told = (await vm.exec(["env"])).stdout.splitlines()
        assert {"FIRST=1", "SECOND=2"} <= {*told}
        assert await vm.read_file("/root/given") == b"given"


async def test_a_pause_is_over_and_times_to_live_go_on(template) -> None:
    async with await template.fork(ttl_s=3600, idle_ttl_s=1800) as vm, vm.checkpoint() as point:
        life = vm._running.life
        await vm.pause()
        await vm.rollback(point)
        assert (await vm.exec(["echo", "on"])).stdout == "on\n"
        assert vm._running.life == life
        assert (vm.timings.first_exec_s > 0, vm.source.kind) == (True, "template")


async def test_after_a_failure_and_a_cancel_it_has_ended_and_is_brought_back_again(fork, monkeypatch) -> None:
    await fork.write_file("/root/it", b"here")

    async def refuse(*_args: object, **_options: object) -> None:
        raise HostError("no")

    async with fork.checkpoint() as point:
        with monkeypatch.context() as patched:
            patched.setattr(rollback, "bring_back", refuse)
            with pytest.raises(HostError, match="no"):
                await fork.rollback(point)
        with pytest.raises(MachineEnded, match="could not be brought back"):
            await fork.exec(["true"])
        await fork.rollback(point)
        for delay in (0.0, 0.01, 0.05, 0.1):
            task = asyncio.create_task(fork.rollback(point))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.wait([task])
            await fork.rollback(point)
            assert await fork.read_file("/root/it") == b"here"


async def test_what_cannot_be_asked_is_refused_and_nothing_was_done(fork, template) -> None:
    async with await template.fork() as other, await other.checkpoint() as others:
        for wrong in (others, None, "checkpoint", fork):
            with pytest.raises(ConfigError):
                await fork.rollback(wrong)
        point = await fork.checkpoint()
        with pytest.raises(ConfigError):
            await fork.rollback(point, files={"relative": b""})
        await point.aclose()
        await point.aclose()
        assert (point.memory_bytes, repr(point)) == (0, f"<Checkpoint of VM {fork.id}, closed>")
        with pytest.raises(Closed):
            await fork.rollback(point)
    pid = fork.pid
    assert (await fork.exec(["echo", "on"])).stdout == "on\n"
    assert fork.pid == pid


async def test_its_checkpoints_go_with_it(template) -> None:
    async with await template.fork() as vm:
        point = await vm.checkpoint()
        assert point.memory_bytes > 1 << 16
        assert point.pause_s > 0
        await vm.rollback(point)
    assert point.memory_bytes == 0
    with pytest.raises(Closed):
        await vm.rollback(point)
    with pytest.raises(Closed):
        await vm.checkpoint()


async def test_closed_while_it_goes_back_it_leaves_nothing(template) -> None:
    vm = await template.fork()
    point = await vm.checkpoint()
    back = asyncio.create_task(vm.rollback(point))
    while vm._running._agent.lost is None:
        await asyncio.sleep(0)
    await vm.aclose()  # waits for that
    await back
    with pytest.raises(Closed):
        await vm.ping()
    assert await VM.list() == []


def test_by_calls_that_wait(template_name) -> None:
    with vmfork.Template.open(template_name).fork() as vm, vm.checkpoint() as point:
        vm.write_file("/root/it", b"here")
        vm.rollback(point)
        assert not vm.exists("/root/it")
        assert point.vm_id == vm.id


@pytest.mark.slow
async def test_it_has_the_size_of_the_checkpoint(instance) -> None:
    template = await Template.build("rollback-size", VMConfig(cpus=1, max_cpus=2, memory_mib=256, max_memory_mib=512))
    try:
        async with await template.fork() as vm, vm.checkpoint() as point:
            await vm.resize(cpus=2, memory_mib=512)
            await vm.rollback(point)
            assert (vm.hardware.cpus, vm.hardware.memory_mib) == (1, 256)
            assert (await vm.exec(["nproc"])).stdout == "1\n"
            await vm.resize(memory_mib=512)
    finally:
        await template.remove()
