"""A running machine is forked and frozen, and runs on: what it was doing, its forks go on doing."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import itertools
import json
import os
import signal
import struct
import sys
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rules.capabilities import need
from tests.vm.cli_runner import run, vmfork
from tests.vm.struck import FORKS, strike_at, was_struck
from tests.vm.test_detached import keeper_of
from vmfork.aio import VM, Allow, Network, Template
from vmfork.config import VMConfig
from vmfork.errors import ConfigError, HostError, MachineEnded, NoRoom, TemplateExists, VMForkError
from vmfork.freeze import fork as forking
from vmfork.freeze import live
from vmfork.host import copier, facts
from vmfork.machine.use import layer_bytes, read_uses, shared_bytes
from vmfork.template.removal import list_persisted

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.vm

# It counts in memory and writes each number down; what it wrote is looked at in one piece.
COUNTER = """
import os, time
os.setsid()
log = open("/root/count", "ab", buffering=0)
number = 0
while True:
    number += 1
    log.write(b"%d\\n" % number)
    time.sleep(0.002)
"""

ECHO = """
from socketserver import StreamRequestHandler, ThreadingTCPServer

class Echo(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)

ThreadingTCPServer(("127.0.0.1", 8000), Echo).serve_forever()
"""


@asynccontextmanager
async def all_closed(vms):
    """The machines, closed at the end of the block."""
    async with AsyncExitStack() as always:
        for vm in vms:
            always.push_async_callback(vm.aclose)
        yield vms


async def count(vm) -> list[int]:
    return [int(line) for line in (await vm.read_file("/root/count")).splitlines()]


async def start_counting(vm) -> None:
    await vm.write_file("/root/counter.py", COUNTER.encode())
    await vm.shell("python3 /root/counter.py </dev/null >/dev/null 2>&1 &", check=True)
    while not await vm.exists("/root/count") or len(await count(vm)) < 3:
        await asyncio.sleep(0.01)


async def wait_counted(vm, beyond: int) -> list[int]:
    while (numbers := await count(vm))[-1] <= beyond:
        await asyncio.sleep(0.01)
    return numbers


async def write_random(vm, mib: int) -> str:
    done = await vm.shell(f"head -c {mib}M /dev/urandom > /root/data && sha256sum < /root/data", check=True)
    return done.stdout.split()[0]


async def digest(vm) -> str:
    return (await vm.shell("sha256sum < /root/data", check=True)).stdout.split()[0]


async def test_what_counts_goes_on_in_parent_and_forks_without_a_gap_or_a_repeat(any_vm) -> None:
    await start_counting(any_vm)
    sha256 = await write_random(any_vm, 16)
    before = (await count(any_vm))[-1]
    async with all_closed(await any_vm.fork(2)) as forks:
        for vm in (any_vm, *forks):
            numbers = await wait_counted(vm, before + 5)
            assert numbers == list(range(1, len(numbers) + 1))
            assert await digest(vm) == sha256
        assert [fork.parent for fork in forks] == [any_vm.id] * 2
        for use in (fork.memory() for fork in forks):
            assert use.guest_siblings > 0
            # What was booted has no template: all that its forks read they share with each other.
            assert bool(use.guest_base) == bool(any_vm.template)
        assert len({vm.id for vm in (any_vm, *forks)}) == 3
        for what in ("generation", "hostname", "machine_id"):
            assert len({getattr(vm, what) for vm in (any_vm, *forks)}) == 3


PROCESS_MADVISE, MADV_PAGEOUT = 440, 21  # Linux 5.10; the same number on each processor


async def page_out(vm) -> int:
    """Its host was asked to swap its memory out. How many KiB of it are by then; 0 where the host cannot."""
    address = await vm._running.machine.locate_memory(0)
    memory = struct.pack("QQ", address, vm.hardware.memory_mib << 20)
    process = os.pidfd_open(vm.pid)
    try:
        ctypes.CDLL(None).syscall(PROCESS_MADVISE, process, memory, ctypes.c_size_t(1), MADV_PAGEOUT, 0)
    finally:
        os.close(process)
    rolled_up = Path(f"/proc/{vm.pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rolled_up.splitlines() if line.startswith("Swap:"))


@pytest.mark.kvm
async def test_what_was_swapped_out_is_in_parent_and_forks(fork) -> None:
    sha256 = await write_random(fork, 16)
    need("swap", found=await page_out(fork) > 8 << 10)
    async with all_closed(await fork.fork(2)) as forks:
        for vm in (*forks, fork):
            assert await digest(vm) == sha256


async def test_what_is_written_afterwards_is_seen_by_one_alone(fork) -> None:
    await fork.write_file("/root/who", b"before")
    async with all_closed(await fork.fork(2)) as forks:
        for name, vm in zip("abc", (fork, *forks), strict=True):
            await vm.write_file("/root/who", name.encode())
        assert [await vm.read_file("/root/who") for vm in (fork, *forks)] == [b"a", b"b", b"c"]


async def test_forks_draw_other_random_numbers_and_have_the_hosts_clock(fork) -> None:
    async with all_closed(await fork.fork(3)) as forks:
        drawn = [(await vm.exec(["head", "-c16", "/dev/urandom"])).stdout_bytes for vm in (fork, *forks)]
        assert len(set(drawn)) == 4
        for vm in forks:
            assert await vm.measure_clock_skew() < 1.0
            told = (await vm.exec(["cat", "/run/vmfork/generation"])).stdout.strip()
            assert told == vm.generation


async def test_a_program_that_streams_loses_no_byte_while_its_machine_is_forked(fork) -> None:
    pieces: list[bytes] = []
    command = "import sys\nfor i in range(400000): sys.stdout.write('%d\\n' % i)"
    run = asyncio.create_task(fork.exec(["python3", "-c", command], on_stdout=pieces.append))
    while not pieces:
        await asyncio.sleep(0.01)
    async with all_closed(await fork.fork(1)) as forks:
        assert (await run).exit_code == 0
        assert b"".join(pieces) == b"".join(b"%d\n" % i for i in range(400_000))
        assert (await forks[0].exec(["echo", "here"])).stdout == "here\n"


WATCHER = """
import threading, vmfork_guest

@vmfork_guest.on_fork
def note(generation):
    with open("/root/told", "a") as file:
        file.write(generation + "\\n")

assert vmfork_guest.watch()
open("/root/watches", "w").close()
threading.Event().wait()
"""


async def test_who_watches_is_told_and_hooks_run_where_they_are_asked_for(fork) -> None:
    for when in ("before-freeze", "after-fork"):
        hook = f"#!/bin/sh\necho {when} >> /root/hooks\n"
        await fork.write_file(f"/etc/vmfork/{when}.d/10-note", hook.encode(), mode=0o755, parents=True)
    await fork.write_file("/root/watcher.py", WATCHER.encode())
    await fork.shell("setsid python3 /root/watcher.py </dev/null >/dev/null 2>&1 &", check=True)
    while not await fork.exists("/root/watches"):
        await asyncio.sleep(0.02)
    async with all_closed(await fork.fork(2, hooks=True)) as forks:
        for vm in forks:
            assert (await vm.read_file("/root/told")).decode() == f"{vm.generation}\n"
            assert await vm.read_file("/root/hooks") == b"before-freeze\nafter-fork\n"
        assert not await fork.exists("/root/told")
        assert await fork.read_file("/root/hooks") == b"before-freeze\n"
        async with all_closed(await forks[0].fork(1)) as (again,):
            assert (await again.read_file("/root/told")).decode() == f"{forks[0].generation}\n{again.generation}\n"
            assert await again.read_file("/root/hooks") == b"before-freeze\nafter-fork\n"


# 3,200 blocks of 64 KiB, each with its number in front.
BLOCKS = 3200
WRITES_BLOCKS = f"import sys\nfor i in range({BLOCKS}): sys.stdout.buffer.write(b'%015d\\n' % i + b'x' * 65520)"


def digest_of_blocks(last: int) -> str:
    """Of the last so many bytes of what it writes."""
    said, skipped = hashlib.sha256(), BLOCKS * 65536 - last
    for number in range(skipped // 65536, BLOCKS):
        said.update((b"%015d\n" % number + b"x" * 65520)[max(skipped - number * 65536, 0) :])
    return said.hexdigest()


@pytest.mark.slow
async def test_of_200_mb_that_a_program_streams_the_parent_has_all_and_a_fork_what_was_not_read_yet(fork) -> None:
    said, got = hashlib.sha256(), 0

    def note(piece: bytes) -> None:
        nonlocal got
        said.update(piece)
        got += len(piece)

    run = asyncio.create_task(fork.exec(["python3", "-c", WRITES_BLOCKS], on_stdout=note))
    while got < 40 << 20:
        await asyncio.sleep(0.01)
    before = got
    async with all_closed(await fork.fork(2)) as forks:
        assert (await run).exit_code == 0
        assert (got, said.hexdigest()) == (BLOCKS * 65536, digest_of_blocks(BLOCKS * 65536))
        lengths = set()
        for child in forks:
            (program,) = await child.programs()
            its, its_digest = 0, hashlib.sha256()
            async for _, piece in program.output():
                its_digest.update(piece)
                its += len(piece)
            assert (await program.wait()).exit_code == 0
            assert 0 < its <= BLOCKS * 65536 - before
            assert its_digest.hexdigest() == digest_of_blocks(its)
            lengths.add(its)
        # They are of one moment.
        assert len(lengths) == 1


# It writes a line for each that it is told, and ends when it is told no more.
TELLER = (
    "import os, sys\nprint('ready', flush=True)\nfor line in sys.stdin: print(os.getpid(), line, end='', flush=True)"
)


async def next_lines(lines, count: int) -> bytes:
    got = b""
    while got.count(b"\n") < count:
        _, data = await anext(lines)
        got += data
    return got


async def test_a_program_that_the_parent_started_runs_on_in_each_fork_and_is_found_there(any_vm) -> None:
    async with await any_vm.start(["python3", "-c", TELLER], stdin=True) as teller:
        said = teller.output()
        assert await next_lines(said, 1) == b"ready\n"
        async with all_closed(await any_vm.fork(2)) as forks:
            for name, fork in zip("ab", forks, strict=True):
                (program,) = await fork.programs()
                assert program.pid == teller.pid
                assert program.name.startswith("python3 -c")
                assert await fork.program(teller.pid) is program
                told = program.output()
                await program.write_stdin(name.encode() + b"\n")
                assert await next_lines(told, 1) == f"{teller.pid} {name}\n".encode()
                await program.close_stdin()
                assert (await program.wait()).exit_code == 0
                assert [each.has_ended for each in await fork.programs()] == [True]
            await teller.write_stdin(b"parent\n")
            assert await next_lines(said, 1) == f"{teller.pid} parent\n".encode()
        assert await any_vm.programs() == ()


async def test_what_it_writes_in_a_fork_waits_there_and_its_fork_has_it_too(fork) -> None:
    await fork.shell("mkfifo /root/go", check=True)
    script = "echo before; read go < /root/go; seq 2000; exec sleep 600"
    async with await fork.start(["sh", "-c", script]) as program:
        assert await next_lines(program.output(), 1) == b"before\n"
        async with all_closed(await fork.fork(1)) as (child,):
            await child.shell("echo > /root/go", check=True)
            seq = b"".join(b"%d\n" % number for number in range(1, 2001))
            (run,) = await child.programs()
            assert await next_lines(run.output(), 2000) == seq
            async with all_closed(await child.fork(1)) as (grandchild,):
                (again,) = await grandchild.programs()
                assert again.pid == program.pid
                await again.kill()
                assert (await again.wait()).exit_code == 137
            assert not run.has_ended
        assert not program.has_ended


async def test_programs_of_the_parent_end_where_that_is_asked(fork) -> None:
    async with await fork.start(["sleep", "600"]) as program:
        async with all_closed(await fork.fork(1, programs="end")) as (child,):
            assert await child.programs() == ()
            assert not await child.exists(f"/proc/{program.pid}")
        assert not program.has_ended


async def test_an_exec_of_the_parent_is_found_in_the_fork_while_the_parent_waits_for_it(fork) -> None:
    await fork.shell("mkfifo /root/go", check=True)
    script = "echo here; touch /root/waits; read word < /root/go; echo $word; exit 3"
    waiting = asyncio.create_task(fork.shell(script, timeout_s=60))
    while not await fork.exists("/root/waits"):
        await asyncio.sleep(0.02)
    async with all_closed(await fork.fork(1)) as (child,):
        (run,) = await child.programs()
        await child.shell("echo child > /root/go", check=True)
        assert await next_lines(run.output(), 1) == b"child\n"
        assert (await run.wait()).exit_code == 3
        await fork.shell("echo parent > /root/go", check=True)
        done = await waiting
        assert (done.exit_code, done.stdout) == (3, "here\nparent\n")


async def test_a_fork_that_lasts_keeps_them_in_the_background(template) -> None:
    async with await template.start() as vm:
        made = []
        try:
            await vm.start(["sh", "-c", "echo kept; exec sleep 600"], background=True)
            async with await vm.start(["python3", "-c", TELLER], stdin=True) as teller:
                assert await next_lines(teller.output(), 1) == b"ready\n"
                made = [*await vm.fork(1, lasting=True), *await vm.fork(1, lasting=True, programs="end")]
            async with await VM.connect(made[0].id) as client:
                found = {each.pid: each for each in await client.programs()}
                assert found.keys() == {teller.pid, *(each.pid for each in await vm.programs())}
                for each in found.values():
                    await each.kill()
                    assert (await each.wait()).exit_code == 137
            assert await made[1].programs() == []
            for pid in found:
                assert not await made[1].exists(f"/proc/{pid}")
        finally:
            for each in (vm, *made):
                await each.stop(grace_s=0)


async def test_ports_that_the_parent_had_are_reset_in_the_fork(fork) -> None:
    """A program of the guest that spoke to the host by one is told so, and does not wait for ever."""

    async def hold(reader, writer) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, await fork.reverse(f"127.0.0.1:{port}", 5432):
        speaker = "import socket; s = socket.create_connection(('127.0.0.1', 5432)); print('in', flush=True); s.recv(1)"
        async with await fork.start(["python3", "-c", speaker]) as program:
            assert await next_lines(program.output(), 1) == b"in\n"
            async with all_closed(await fork.fork(1)) as (child,):
                (run,) = await child.programs()
                told = b"".join([data async for _, data in run.output()])
                assert b"ConnectionResetError" in told
                with pytest.raises(VMForkError, match="nothing listens"):
                    await child.open_connection(5432)
            assert not program.has_ended


async def test_a_forwarded_port_and_its_connections_stay_with_the_parent(fork) -> None:
    await fork.write_file("/root/echo.py", ECHO.encode())
    await fork.shell("setsid python3 /root/echo.py </dev/null >/dev/null 2>&1 &", check=True)
    await fork.wait_for_port(8000)
    async with await fork.forward(8000) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.host_port)
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        async with all_closed(await fork.fork(1)) as forks:
            writer.write(b"two\n")
            assert await reader.readline() == b"two\n"
            async with await forks[0].open_connection(8000) as connection:
                await connection.write(b"three\n")
                assert await connection.read() == b"three\n"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("depth", [3, pytest.param(10, marks=pytest.mark.slow)])
async def test_a_chain_keeps_what_each_of_it_wrote_when_those_before_are_gone(template, depth) -> None:
    """Each level is a fork of the one before or, every other time, of a template of it; both are gone then."""
    vm = await template.fork()
    nonces: list[bytes] = []
    lines = [[f"{template.name}/{template.generation}"]]
    try:
        for level in range(depth):
            nonces.append(os.urandom(100_000))
            await vm.write_file(f"/root/level-{level}", nonces[-1])
            child, line = await (fork_by_template(vm, level) if level % 2 else fork_alone(vm))
            await vm.aclose()
            vm = child
            lines.append(line)
            assert [await vm.read_file(f"/root/level-{each}") for each in range(level + 1)] == nonces
        templates = [name for line in lines for name in line]
        assert list(vm.facts.descent.templates) == templates
        assert len(templates) == 1 + depth // 2
        assert (await VM.list())[-1].facts.descent == vm.facts.descent
    finally:
        await vm.aclose()


async def fork_alone(vm) -> tuple[VM, list[str]]:
    """A live fork, and the templates that it has in its line beyond those of its parent."""
    (child,) = await vm.fork(1)
    assert child.facts.descent.vms == (*vm.facts.descent.vms, vm.id)
    return child, []


async def fork_by_template(vm, level: int) -> tuple[VM, list[str]]:
    """The same of a template that is gone again."""
    frozen = await vm.freeze(f"live-chain-{level}")
    try:
        assert frozen.manifest.ancestors == vm.facts.descent.templates
        return await frozen.fork(), [f"{frozen.name}/{frozen.generation}"]
    finally:
        await frozen.remove()


async def test_a_paused_machine_is_forked_as_it_stands_and_stays_paused(fork) -> None:
    await fork.pause()
    async with all_closed(await fork.fork(1)) as forks:
        assert (await forks[0].exec(["echo", "runs"])).stdout == "runs\n"
        assert not await fork._running.machine.is_running()
    await fork.resume()
    assert (await fork.exec(["echo", "too"])).stdout == "too\n"


ROOMY = VMConfig(cpus=1, max_cpus=2, memory_mib=256, max_memory_mib=768)


@pytest.fixture(scope="module")
def roomy(instance):
    """A template whose machines can grow."""
    template = asyncio.run(Template.build("live-roomy", ROOMY))
    yield template.name
    asyncio.run(template.remove())


async def size_of(vm) -> tuple[int, int]:
    """CPUs and MiB of memory that the guest says it has."""
    said = await vm.shell("nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo", check=True)
    cpus, mib = said.stdout.split()
    return int(cpus), int(mib)


async def is_in_added_memory(vm, text: bytes) -> bool:
    """Whether the file that the machine was made from has `text` behind what its parent had been booted with."""
    with await live.MappedMemory.ask(vm._running.machine.keeper) as mapped:
        fd, at = mapped.held[-1], vm.hardware.base_memory_mib << 20
        with suppress(OSError):  # ENXIO: no data behind it
            while True:
                at = os.lseek(fd, at, os.SEEK_DATA)
                end = os.lseek(fd, at, os.SEEK_HOLE)
                if text in os.pread(fd, end - at, at):
                    return True
                at = end
    return False


@pytest.mark.kvm
@pytest.mark.qemu
@pytest.mark.parametrize("made", [pytest.param("booted", marks=pytest.mark.slow), "forked"])
async def test_a_machine_that_has_grown_is_forked_with_what_it_was_given_and_what_is_in_it(roomy, made) -> None:
    """And a fork of it grows, shrinks, and is forked in its turn."""
    signs = [os.urandom(64) for _ in range(3)]

    async def check(vm, count: int) -> None:
        for number, sign in enumerate(signs[:count]):
            assert (await vm.read_file(f"/root/{number}")) == sign * 20_000

    async with await (VM.boot(ROOMY) if made == "booted" else (await Template.open(roomy)).fork()) as parent:
        await parent.resize(cpus=2, memory_mib=512)
        # The kernel gives programs what lies highest first, and that is what was added.
        await parent.write_file("/root/0", signs[0] * 20_000)
        size = await size_of(parent)
        (child,) = await parent.fork(1)
        async with child:
            assert await size_of(child) == size
            assert (child.hardware.cpus, child.hardware.added_mib) == (2, (256,))
            assert await is_in_added_memory(child, signs[0])
            await check(child, 1)
            await check(parent, 1)
            await child.resize(memory_mib=640)
            await child.write_file("/root/1", signs[1] * 20_000)
            async with all_closed(await child.fork(2)) as grandchildren:
                for vm in grandchildren:
                    assert await size_of(vm) == (2, size[1] + 128)
                    await check(vm, 2)
            await child.resize(cpus=1, memory_mib=256)
            await check(child, 2)
            await child.resize(memory_mib=384)
            await child.write_file("/root/2", signs[2] * 20_000)
            async with all_closed(await child.fork(1)) as grandchildren:
                assert await size_of(grandchildren[0]) == (1, size[1] - 128)
                await check(grandchildren[0], 3)
                # What the piece before had is nowhere: the new one was filled anew.
                assert not await is_in_added_memory(grandchildren[0], signs[0] * 2)
        await check(parent, 1)


async def test_a_template_of_a_machine_that_has_grown_is_whole(roomy) -> None:
    sign = os.urandom(64)
    async with await (await Template.open(roomy)).fork() as vm:
        await vm.resize(cpus=2, memory_mib=512)
        await vm.write_file("/root/it", sign * 20_000)
        frozen, size = await vm.freeze("live-grown"), await size_of(vm)
    try:
        await frozen.verify()
        assert (frozen.manifest.memory_mib, frozen.manifest.added_mib) == (512, (256,))
        async with await frozen.fork(memory_mib=640) as vm:
            assert await size_of(vm) == (2, size[1] + 128)
            assert await is_in_added_memory(vm, sign)
            assert vm.memory().guest_shared > 24 << 20
            async with all_closed(await vm.fork(1)) as forks:
                assert await size_of(forks[0]) == (2, size[1] + 128)
                assert await forks[0].read_file("/root/it") == sign * 20_000
                again = await forks[0].freeze("live-grown-again")
        await frozen.remove()
        async with await again.fork() as vm:
            assert await vm.read_file("/root/it") == sign * 20_000
            await vm.resize(cpus=1, memory_mib=256)
            assert await vm.read_file("/root/it") == sign * 20_000
    finally:
        for name in {"live-grown", "live-grown-again"} & set(await Template.list()):
            await (await Template.open(name)).remove()


async def test_what_is_open_stays_with_a_grown_fork_of_a_fork_that_is_frozen(roomy) -> None:
    """A policy, a network, a forwarded port, a service of the host, and a program with its input and output."""
    policy, job = Allow("db.example.org:5432"), Network("live")
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    here = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    call = ["python3", "-c", "import socket; print(socket.create_connection(('127.0.0.1', 5433)).recv(9))"]
    names = []
    async with server, AsyncExitStack() as always:
        vm = await (await Template.open(roomy)).fork(network=policy)
        always.push_async_callback(vm.aclose)
        await vm.resize(cpus=2, memory_mib=512)
        for _ in range(2):
            (vm,) = await vm.fork(1, network=policy)
            always.push_async_callback(vm.aclose)
        await vm.resize(memory_mib=640)
        size = await size_of(vm)
        await vm.write_file("/root/echo.py", ECHO.encode())
        await vm.shell("setsid python3 /root/echo.py </dev/null >/dev/null 2>&1 &", check=True)
        await vm.wait_for_port(8000)
        await vm.join(job)
        await vm.expose(8000, "echo")
        await always.enter_async_context(vm.reverse(here, 5433))
        port = await always.enter_async_context(vm.forward(8000))
        teller = await always.enter_async_context(vm.start(["python3", "-c", TELLER], stdin=True))
        told = teller.output()
        assert await next_lines(told, 1) == b"ready\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port.host_port)
        always.callback(writer.close)
        try:
            for name in ("live-open", "live-open-again"):
                frozen = await vm.freeze(name)
                names.append(name)
                writer.write(name.encode() + b"\n")
                assert await reader.readline() == name.encode() + b"\n"
                await teller.write_stdin(b"here\n")
                assert await next_lines(told, 1) == f"{teller.pid} here\n".encode()
                assert (await vm.exec(call)).stdout == "b'hello'\n"
                assert vm.network == policy
                async with await frozen.fork() as made:
                    assert await size_of(made) == size
                    assert await made.programs() == ()
                    assert not await made.exists(f"/proc/{teller.pid}")
                    assert made.network == "none"
                    assert "127.0.0.1:3128" not in (await made.exec(["env"])).stdout
                    assert "echo" not in (await made.read_file("/etc/hosts")).decode()
                    assert "ConnectionRefusedError" in (await made.exec(call)).stderr
                    async with await made.open_connection(8000) as connection:
                        await connection.write(b"mine\n")
                        assert await connection.read() == b"mine\n"
        finally:
            for name in names:
                await (await Template.open(name)).remove()


async def greet(_reader, writer) -> None:
    writer.write(b"hello")
    writer.close()


async def test_forks_share_what_the_parent_had_for_itself(fork, instance) -> None:
    await write_random(fork, 24)
    own = fork.memory().guest_private
    async with all_closed(await fork.fork(2)) as forks:
        assert own > 24 << 20
        with await live.MappedMemory.ask(forks[0]._running.machine.keeper) as mapped:
            below, upper = (os.fstat(fd).st_ino for fd in mapped.held)
            assert os.fstat(mapped.held[1]).st_blocks * 512 < 1.3 * own
        assert (below, upper) == (fork.facts.ram_inode, forks[0].facts.upper_inode)
        for vm in forks:
            await digest(vm)
            use, stats = vm.memory(), await vm.stats()
            assert use.guest_private < own // 2
            assert use.guest_siblings > 24 << 20
            assert use.guest_base > 1 << 20
            assert use.guest_siblings + use.guest_base == use.guest_shared
            assert 24 << 20 < stats.siblings_bytes < stats.layer_bytes < 1.3 * own
        uses = [each for each in read_uses(instance.vms) if each.record.id != fork.id]
        assert layer_bytes(uses) == uses[0].record.facts.layer_bytes
        assert shared_bytes(uses) < sum(each.memory.guest_shared for each in uses)


async def test_it_is_frozen_twice_and_the_second_is_whole_as_well(any_vm) -> None:
    """The classic defect elsewhere: the second snapshot of what came from one has half of it."""
    sha256 = await write_random(any_vm, 8)
    await start_counting(any_vm)
    first = await any_vm.freeze("live-first")
    try:
        async with await first.fork() as vm:
            assert await digest(vm) == sha256
            await vm.write_file("/root/second", b"second")
            second = await vm.freeze("live-second")
        try:
            await first.remove()
            await second.verify()
            assert second.manifest.parent == "live-first"
            async with await second.fork() as vm:
                assert (await digest(vm), await vm.read_file("/root/second")) == (sha256, b"second")
                before = (await count(vm))[-1]
                numbers = await wait_counted(vm, before)
                assert numbers == list(range(1, len(numbers) + 1))
            assert (await second.audit(2)).safe
        finally:
            await second.remove()
        numbers = await wait_counted(any_vm, (await count(any_vm))[-1])
        assert numbers == list(range(1, len(numbers) + 1))
    finally:
        if "live-first" in await Template.list():
            await first.remove()


async def test_a_name_that_is_taken_is_refused_before_the_machine_is_paused(fork, template_name, monkeypatch) -> None:
    monkeypatch.setattr(copier, "find_copier", never)
    with pytest.raises(TemplateExists):
        await fork.freeze(template_name)
    with pytest.raises(ConfigError):
        await fork.freeze("no/name")


def never(*_args: object) -> Path:
    raise AssertionError("it was copied")


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"count": 0}, ConfigError),
        ({"count": -1}, ConfigError),
        ({"count": 10_000}, ConfigError),
        ({"count": 1, "files": {"relative": b""}}, ConfigError),
        ({"count": 1, "env": {"A=B": "c"}}, ConfigError),
        ({"count": 1, "cpus": 200}, ConfigError),
        ({"count": 1, "network": "some"}, ConfigError),
        ({"count": 1, "card": "open"}, ConfigError),
        ({"count": 1, "allow_guest_fork": -1}, ConfigError),
        ({"count": 1, "name": "one"}, ConfigError),
        ({"count": 2, "name": "two", "lasting": True}, ConfigError),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_the_machine_is_paused(fork, monkeypatch, asked, error) -> None:
    monkeypatch.setattr(copier, "find_copier", never)
    with pytest.raises(error):
        await fork.fork(**asked)


async def test_a_host_without_room_refuses_before_the_machine_is_paused(fork, monkeypatch) -> None:
    monkeypatch.setattr(copier, "find_copier", never)
    monkeypatch.setattr(facts, "available_memory_bytes", lambda: 1 << 20)
    monkeypatch.setattr(live.facts, "available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(HostError, match=r"not enough memory: copying VM .* needs .* can be had") as raised:
        await fork.fork(1)
    assert not isinstance(raised.value, NoRoom)
    with pytest.raises(NoRoom, match=r"900 forks of .* were asked for"):
        await fork.fork(900)
    assert (await fork.exec(["echo", "on"])).stdout == "on\n"


async def test_a_machine_that_has_ended_is_told_as_that(fork) -> None:
    os.kill(fork.pid, signal.SIGKILL)
    with pytest.raises(MachineEnded):
        await fork.fork()


async def test_a_machine_that_was_closed_or_is_detached_or_anothers_is_not_forked(template) -> None:
    async with await template.fork() as vm:
        pass
    with pytest.raises(VMForkError, match="closed"):
        await vm.fork()
    vm = await template.fork()
    told = vmfork("fork", vm.id)
    assert (told.status, told.raw) == (1, b"")
    assert f"process {os.getpid()}" in told.err
    handle = await vm.detach(ttl_s=60)
    with pytest.raises(VMForkError, match="was detached"):
        await vm.fork()
    told = vmfork("fork", vm.id)
    assert (told.status, told.raw) == (2, b"")
    assert "waits for one owner" in told.err
    await (await VM.attach(handle)).aclose()


async def test_when_one_fork_fails_all_are_closed_and_the_error_has_each(fork, instance, monkeypatch) -> None:
    """A hook that fails in every fork: not one is handed out."""
    await fork.write_file("/etc/vmfork/after-fork.d/10-fails", b"#!/bin/sh\nexit 3\n", mode=0o755, parents=True)
    with pytest.raises(VMForkError) as raised:
        await fork.fork(2, hooks=True)
    failed = [raised.value, *raised.value.siblings]
    assert [type(error).__name__ for error in failed] == ["SetupError"] * len(failed)
    assert [record.id for record in await VM.list()] == [fork.id]
    given = await fork.fork(2, hooks=True, partial=True)
    assert [type(each).__name__ for each in given] == ["SetupError"] * 2
    assert (await fork.exec(["echo", "on"])).stdout == "on\n"


async def test_those_that_could_be_had_are_given_beside_the_errors_of_the_others(fork, monkeypatch) -> None:
    restore, count = forking.restore_base, itertools.count()

    async def restore_some(*args: object, **options: object) -> object:
        if next(count) == 1:
            raise HostError("no more")
        return await restore(*args, **options)

    monkeypatch.setattr(forking, "restore_base", restore_some)
    given = await fork.fork(3, partial=True)
    assert [str(each) for each in given if isinstance(each, VMForkError)] == ["no more"]
    async with all_closed([each for each in given if isinstance(each, VM)]) as forks:
        for vm in (fork, *forks):
            assert (await vm.exec(["echo", "on"])).stdout == "on\n"
        assert len(forks) == 2


STEPS = ("qmp_capabilities", "add-fd", "stop", "xen-save-devices-state", "cont")


@pytest.mark.kvm
@pytest.mark.parametrize("step", STEPS)
async def test_a_copier_that_is_killed_leaves_a_machine_that_runs(fork, tmp_path, monkeypatch, step) -> None:
    """Killed by the one who reads what it says to QEMU: strace would need rights that not every host gives."""
    script = strike_at(tmp_path, step, "[child.pid]")
    monkeypatch.setattr(copier, "find_copier", lambda: script)
    with pytest.raises(HostError, match=r"could not be copied: (?!Traceback)"):
        await fork.fork(1)
    assert was_struck(script)
    assert await fork._running.machine.is_running()
    assert (await fork.exec(["echo", "on"])).stdout == "on\n"
    monkeypatch.undo()
    async with all_closed(await fork.fork(1)) as forks:
        assert (await forks[0].exec(["echo", "too"])).stdout == "too\n"


few_steps = [pytest.param(step, marks=[] if step == "stop" else pytest.mark.slow) for step in STEPS]


@pytest.mark.parametrize("step", few_steps)
async def test_a_machine_that_is_killed_while_it_is_copied_has_ended_by_name(fork, tmp_path, monkeypatch, step) -> None:
    """And nothing of it, of the copier or of a fork is left, which each test is looked at for."""
    script = strike_at(tmp_path, step, f"[{fork.pid}]")
    monkeypatch.setattr(copier, "find_copier", lambda: script)
    try:
        forks = await fork.fork(1)
    except MachineEnded:
        forks = []
    # Where it was let go on before its end came, the copy was made.
    assert not forks or step == "cont"
    async with all_closed(forks):
        assert was_struck(script)
        with pytest.raises(MachineEnded):
            await fork.exec(["true"])


@pytest.mark.parametrize("step", few_steps)
async def test_a_keeper_that_is_killed_while_its_machine_is_copied_changes_nothing(
    fork, tmp_path, monkeypatch, step
) -> None:
    """Its owner ends it, as long as that is there; whoever copies has what the keeper held."""
    script = strike_at(tmp_path, step, f"[{keeper_of(fork)}]")
    monkeypatch.setattr(copier, "find_copier", lambda: script)
    async with all_closed(await fork.fork(1)) as forks:
        assert was_struck(script)
        for vm in (fork, *forks):
            assert (await vm.exec(["echo", "on"])).stdout == "on\n"


@pytest.mark.parametrize("step", few_steps)
async def test_a_process_that_is_killed_while_it_forks_leaves_a_machine_that_runs(template, tmp_path, step) -> None:
    async with await template.start() as vm:
        try:
            await start_counting(vm)
            script = strike_at(tmp_path, step, "[os.getppid()]")
            assert run(sys.executable, "-c", FORKS, vm.id, str(script)).status == -signal.SIGKILL
            assert was_struck(script)
            numbers = await wait_counted(vm, (await count(vm))[-1])
            assert numbers == list(range(1, len(numbers) + 1))
            # Whoever comes next finds it, and it alone.
            (child,) = vmfork("fork", vm.id).check().out.split()
            assert {each["id"] for each in json.loads(vmfork("ps", "--json").check().out)} == {vm.id, child}
            vmfork("stop", "--grace", "0", child).check()
        finally:
            await vm.stop(grace_s=0)


async def test_a_fork_that_is_cancelled_leaves_a_machine_that_runs(fork) -> None:
    for delay in (0.0, 0.01, 0.05, 0.1):
        task = asyncio.create_task(fork.fork(2))
        await asyncio.sleep(delay)
        task.cancel()
        (made,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(made, asyncio.CancelledError):  # a quick host had made them
            for vm in made:
                await vm.aclose()
        assert (await fork.exec(["echo", "on"])).stdout == "on\n"
    assert [record.id for record in await VM.list()] == [fork.id]


async def test_a_machine_with_clients_is_forked_by_one_of_them_and_its_forks_last(template) -> None:
    async with await template.start() as vm:
        try:
            await vm.write_file("/root/it", b"here")
            forks = await vm.fork(2, lasting=True, labels={"of": "live"})
            ids = {fork.id for fork in forks}
            for fork in forks:
                await fork.aclose()
            assert {record.id for record in await VM.list(label="of=live")} == ids
            for each in ids:
                async with await VM.connect(each) as again:
                    assert await again.read_file("/root/it") == b"here"
                    assert again.parent == vm.id
                    await again.stop(grace_s=0)
        finally:
            await vm.stop(grace_s=0)


@contextmanager
def no_marks(_process) -> Iterator[int]:
    yield -1


@pytest.mark.kvm
@pytest.mark.qemu
@pytest.mark.parametrize("way", ["marked", "twice"])
async def test_what_it_writes_is_in_the_fork_however_the_kernel_notes_it(fork, monkeypatch, way) -> None:
    """As on Linux before 6.7, which marks what is written, or cannot do that either."""
    if way == "marked":
        need("marked-writes")
    ask, copy, ways = live.MappedMemory.ask, live.copy_machine, []

    async def without(keeper):
        mapped = await ask(keeper)
        if mapped.faults_fd >= 0:
            os.close(mapped.faults_fd)
        return live.MappedMemory(mapped.memory_fd, mapped.pagemap_fd, -1, mapped.held)

    async def noting(*args, **options):
        copied = await copy(*args, **options)
        ways.append(copied.way)
        return copied

    monkeypatch.setattr(live, "copy_machine", noting)
    monkeypatch.setattr(live.MappedMemory, "ask", without)
    if way == "twice":
        monkeypatch.setattr(live, "open_marks", no_marks)
    await start_counting(fork)
    sha256 = await write_random(fork, 8)
    async with all_closed(await fork.fork(1)) as forks:
        assert ways == [way]
        assert await digest(forks[0]) == sha256
        numbers = await wait_counted(forks[0], (await count(forks[0]))[-1])
        assert numbers == list(range(1, len(numbers) + 1))


async def test_the_commands_fork_and_freeze_what_runs(template, instance) -> None:
    async with await template.start() as vm:
        made = []
        try:
            await vm.write_file("/root/it", b"here")
            told = json.loads(vmfork("fork", vm.id, "-n", "2", "--label", "of=live", "--json").check().out)
            made = told["forked"]
            assert told["parent"] == vm.id
            assert len(made) == 2
            for each in made:
                assert vmfork("exec", each, "cat", "/root/it").check().out == "here"
            assert vmfork("freeze", vm.id, "live-command").check().out == "template 'live-command' is ready\n"
            assert vmfork("run", "-t", "live-command", "cat", "/root/it").check().out == "here"
            (below,) = [
                each["children"]
                for each in json.loads(vmfork("template", "ls", "--tree", "--json").check().out)
                if each["name"] == template.name
            ]
            assert [each["name"] for each in below] == ["live-command"]
            (group,) = json.loads(vmfork("ps", "--tree", "-m", "--filter", "of=live", "--json").check().out)
            for each in group["machines"]:
                assert (each["ancestors"], each["template"]) == ([vm.id], template.name)
                assert 0 < each["siblings_bytes"] < each["shared_bytes"]
                assert 0 < each["own_bytes"] < each["memory_mib"] << 20
                assert each["siblings_bytes"] <= each["layer_bytes"]
            assert vmfork("freeze", vm.id, "live-command").status == 1
            assert "live-command" not in list_persisted(instance)
            kept = {"VMFORK_VM_PERSIST": "true"}
            vmfork("freeze", vm.id, "live-command", "--replace", env=kept).check()
            assert "live-command" in list_persisted(instance)
            for wrong in (("fork", vm.id, "-n", "0"), ("fork", vm.id, "-n", "10000"), ("freeze", vm.id, "no/name")):
                refused = vmfork(*wrong)
                assert (refused.status, refused.raw) == (2, b"")
                assert refused.err.startswith("error: ")
            assert await vm.read_file("/root/it") == b"here"
        finally:
            if "live-command" in await Template.list():
                vmfork("template", "rm", "live-command").check()
            vmfork("stop", "--grace", "0", vm.id, *made).check()
