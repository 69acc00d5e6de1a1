"""A program forks its own machine: it goes on in each, learns how they ended, and can do no more than it may."""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.vm.cli_runner import Running, vmfork
from vmfork.aio import VM
from vmfork.errors import ConfigError, GuestError, MachineEnded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

LIMIT_S = 120.0


@asynccontextmanager
async def allowed(template, most: int, **options: object) -> AsyncIterator[VM]:
    """A fork whose programs may have so many machines beside it; nothing of them is left behind."""
    async with template.fork(allow_guest_fork=most, **options) as vm:
        yield vm
    assert await VM.list() == []


async def run(vm, program: str) -> str:
    begin = "import os, sys, time, vmfork_guest as g\n"
    done = await vm.exec(["python3", "-c", begin + program], timeout_s=LIMIT_S)
    assert done.exit_code == 0, done.stderr
    return done.stdout


async def test_it_goes_on_in_each_with_an_index_and_is_told_how_they_ended(template) -> None:
    program = """
nonce = os.urandom(8).hex()
index = g.fork(3)
if index:
    g.exit(index + 10, f"{nonce} {open('/etc/hostname').read().strip()} {os.urandom(4).hex()}")
told = sorted((g.wait() for _ in range(3)), key=lambda each: each.index)
words = [each.message.split() for each in told]
assert [(each.index, each.status) for each in told] == [(1, 11), (2, 12), (3, 13)], told
assert all(each[0] == nonce for each in words), words
assert len({each[1] for each in words} | {open('/etc/hostname').read().strip()}) == 4, words
assert len({each[2] for each in words}) == 3, words
assert [f"vm-{each.id}" for each in told] == [each[1] for each in words]
try:
    g.wait()
except ChildProcessError:
    print("alone")
"""
    async with allowed(template, 3) as vm:
        assert await run(vm, program) == "alone\n"
        assert await vm.children() == []


@pytest.mark.slow
async def test_random_numbers_differ_whether_it_watches_or_not(template) -> None:
    program = """
import random, tempfile
random.seed(1)
if len(sys.argv) > 1:
    g.watch()
if g.fork(2):
    g.exit(message=f"{random.random()} {next(tempfile._get_candidate_names())}")
told = [g.wait().message for _ in range(2)]
assert told[0].split()[0] != told[1].split()[0], told
assert told[0].split()[1] != told[1].split()[1], told
"""
    async with allowed(template, 2) as vm:
        await run(vm, program)
        await run(vm, program.replace("len(sys.argv) > 1", "True"))


async def test_forks_are_the_owners_and_have_what_the_machine_has(template) -> None:
    """Its owner finds them while they live, works in them, and closing the first closes all."""
    program = """
if g.fork(2):
    index = g.fork(1)
    open("/root/forked", "w").write(str(index))
    time.sleep(600)
print("made", flush=True)
time.sleep(600)
"""
    async with allowed(template, 4, env={"WHAT": "inherited"}) as vm:
        begin = "import os, sys, time, vmfork_guest as g\n"
        async with await vm.start(["python3", "-c", begin + program]) as process:
            async for _, data in process.output():
                assert data == b"made\n"
                break
            children = await vm.children()
            assert [child.parent for child in children] == [vm.id] * 2
            for child in children:
                while not await child.exists("/root/forked"):
                    await asyncio.sleep(0.02)
                assert (await child.exec(["printenv", "WHAT"])).stdout == "inherited\n"
                (grandchild,) = await child.children()
                assert grandchild.parent == child.id
            with pytest.raises(GuestError, match="still run"):
                await vm.detach()
            await children[0].aclose()
            assert await vm.children() == children[1:]
            # What it had made itself runs on, until the first is closed.
            assert len(await VM.list()) == 4


async def test_no_more_live_at_a_time_than_may_of_all_generations(template) -> None:
    program = """
def refused(count):
    try:
        g.fork(count)
    except g.ForkError as error:
        return error.reason
assert refused(3) == "limit"
assert refused(0) == "failed"
for attempt in range(2):
    if g.fork(1):
        if g.fork(1):
            g.exit(0, "inner " + refused(1))
        told = g.wait()
        g.exit(told.status, told.message)
    assert g.wait().message == "inner limit"
"""
    async with allowed(template, 2) as vm:
        await run(vm, program)


async def test_where_nobody_allowed_it_it_is_refused(template) -> None:
    program = """
try:
    g.fork()
except g.ForkError as error:
    print(error.reason, error)
try:
    g.exit(1)
except g.ForkError as error:
    print(error.reason)
"""
    refused = "not-allowed this machine may not be forked from inside: its owner says so by allow_guest_fork=N\n"
    async with template.fork() as vm:
        assert await run(vm, program) == f"{refused}not-allowed\n"
        (child,) = await vm.fork()
        async with child:
            assert await run(child, program) == f"{refused}not-allowed\n"


FORKS_ONCE = """
try:
    if g.fork():
        g.exit(3)
    print(g.wait().status)
except g.ForkError as error:
    print(error.reason)
"""


async def test_a_fork_that_its_host_made_has_an_allowance_of_its_own(template) -> None:
    """Nothing of it is taken from its parent's, and that its parent has none changes nothing."""
    async with template.fork() as vm:
        for wrong, told in ((-1, "not a whole number"), (1001, "0 to 1000 machines")):
            with pytest.raises(ConfigError, match=told):
                await vm.fork(allow_guest_fork=wrong)
        (child,) = await vm.fork(allow_guest_fork=1)
        async with child:
            assert await run(child, FORKS_ONCE) == "3\n"
            assert await run(vm, FORKS_ONCE) == "not-allowed\n"


# It waits for a fork that says nothing, and notes when there is none to wait for any more.
WAITS = """
if g.fork():
    time.sleep(600)
open("/root/waits", "w").close()
try:
    g.wait()
except ChildProcessError:
    open("/root/alone", "w").close()
"""


async def test_what_has_gone_back_may_be_forked_again_and_has_none_of_its_forks(template) -> None:
    begin = "import os, sys, time, vmfork_guest as g\n"
    async with allowed(template, 1) as vm:
        await vm.write_file("/root/waits.py", begin + WAITS)
        await vm.shell("setsid python3 /root/waits.py </dev/null >/dev/null 2>&1 &", check=True)
        async with asyncio.timeout(LIMIT_S):
            while not await vm.exists("/root/waits"):
                await asyncio.sleep(0.02)
        (child,) = await vm.children()
        async with vm.checkpoint() as point, child.checkpoint() as of_child:
            with pytest.raises(ConfigError, match="lasts as long as the program that asked for it"):
                await child.rollback(of_child)
            assert (await child.exec(["echo", "on"])).stdout == "on\n"
            await vm.rollback(point)
            # The program that waited then waits here, and is told.
            async with asyncio.timeout(LIMIT_S):
                while not await vm.exists("/root/alone"):
                    await asyncio.sleep(0.02)
            assert await vm.children() == []
            assert [record.id for record in await VM.list()] == [vm.id]
            assert await run(vm, FORKS_ONCE) == "3\n"


def test_a_command_may_fork_the_machine_that_it_runs_in_where_that_is_said(template_name) -> None:
    program = ["python3", "-c", "import vmfork_guest as g\n" + FORKS_ONCE]
    assert vmfork("run", "-t", template_name, "--allow-guest-fork", "1", "--", *program).check().out == "3\n"
    for wrong in (["-1"], ["1", "-d", "--idle-ttl", "60"]):
        refused = vmfork("run", "-t", template_name, "--allow-guest-fork", *wrong, "true")
        assert (refused.status, refused.raw) == (125, b"")
        assert refused.err.startswith("error: ")


@asynccontextmanager
async def standing_alone(template, **options: object) -> AsyncIterator[VM]:
    """A machine that outlives its maker, as its first client has it; it has ended at the end of the block."""
    async with template.start(**options) as vm:
        try:
            yield vm
        finally:
            vmfork("stop", "--grace", "0", vm.id)


async def test_a_machine_that_stands_alone_is_forked_while_a_client_lets_it(template) -> None:
    """What it makes is that client's, lives no longer than it would, and ends with the client."""
    async with standing_alone(template, allow_guest_fork=1, ttl_s=3600) as vm:
        assert await run(vm, FORKS_ONCE) == "3\n"
        async with await VM.connect(vm.id) as other:
            with pytest.raises(GuestError, match="somebody answers"):
                await other.allow_guest_fork(1)
            for wrong in (0, -1, 1001):
                with pytest.raises(ConfigError):
                    await other.allow_guest_fork(wrong)
        with pytest.raises(ConfigError, match="may fork it already"):
            await vm.allow_guest_fork(1)
        await vm.write_file("/root/waits.py", "import os, sys, time, vmfork_guest as g\n" + WAITS)
        await vm.shell("setsid python3 /root/waits.py </dev/null >/dev/null 2>&1 &", check=True)
        async with asyncio.timeout(LIMIT_S), aclosing(vm.follow_children()) as followed:
            async for ids in followed:
                if ids:
                    break
            while not await vm.exists("/root/waits"):
                await asyncio.sleep(0.02)
        (child,) = await vm.children()
        assert [child.id] == ids
        assert 3000 < child._running.life.left_s() <= 3600
        async with vm.checkpoint() as point:
            await vm.rollback(point)
        # Who waited then waits here, and is told.
        async with asyncio.timeout(LIMIT_S):
            while not await vm.exists("/root/alone"):
                await asyncio.sleep(0.02)
        assert await vm.children() == []
        assert await run(vm, FORKS_ONCE) == "3\n"
        async with await VM.connect(vm.id) as again:
            await vm.aclose()
            assert await run(again, FORKS_ONCE) == "not-allowed\n"
            await again.allow_guest_fork(1)
            assert await run(again, FORKS_ONCE) == "3\n"
            # Nothing runs in it because programs may ask, so it can get an owner.
            async with await VM.attach(vm.id) as owner:
                assert await run(owner, FORKS_ONCE) == "not-allowed\n"
                await owner.allow_guest_fork(1)
                assert await run(owner, FORKS_ONCE) == "3\n"
    assert await VM.list() == []


def test_a_command_leaves_behind_who_answers_the_programs_of_a_machine(template_name) -> None:
    program = ["python3", "-c", "import vmfork_guest as g\n" + FORKS_ONCE]
    made = [vmfork("start", "-t", template_name, "--allow-guest-fork", "1").check().out.strip()]
    try:
        assert vmfork("exec", made[0], "--", *program).check().out == "3\n"
        assert "somebody answers" in vmfork("guest-fork", made[0], "1").err
        for most in ("1", "0"):
            made += vmfork("fork", made[0], "--allow-guest-fork", most).check().out.split()
        assert vmfork("exec", made[1], "--", *program).check().out == "3\n"
        assert vmfork("exec", made[2], "--", *program).check().out == "not-allowed\n"
        with Running("guest-fork", made[2], "1") as letting:
            letting.wait_for("may be forked from inside")
            assert vmfork("exec", made[2], "--", *program).check().out == "3\n"
            letting.wait_for("\n", fd=1)
            assert len(letting.seen(1).split()) == 1
            letting.interrupt(signal.SIGINT)
            assert letting.end().status == 130
    finally:
        vmfork("stop", "--grace", "0", *made).check()


async def test_a_program_that_says_nothing_is_told_of_with_its_exit_status(template) -> None:
    program = """
if g.fork(1):
    sys.exit(7)
told = g.wait()
assert (told.index, told.status, told.message) == (1, 7, ""), told
if g.fork(1):
    os.kill(os.getpid(), 9)
assert g.wait().status == 137
try:
    if g.fork(1):
        time.sleep(600)
    g.wait(0.2)
except TimeoutError:
    print("late")
"""
    async with allowed(template, 1) as vm:
        assert await run(vm, program) == "late\n"


@pytest.mark.slow
async def test_a_fork_whose_machine_ends_is_told_of(template) -> None:
    program = """
if g.fork(1):
    os.system("echo b > /proc/sysrq-trigger")
    time.sleep(600)
told = g.wait()
assert (told.status, told.message) == (None, "its machine ended"), told
"""
    async with allowed(template, 1) as vm:
        await run(vm, program)


async def test_two_programs_fork_one_machine_each_for_itself(template) -> None:
    """In a fork that one of them asked for, the other asks still, and is answered there too."""
    program = """
made = g.fork(1)
if made:
    g.exit(5, sys.argv[1])
assert g.wait().message == sys.argv[1]
"""
    begin = "import os, sys, time, vmfork_guest as g\n"
    async with allowed(template, 8) as vm:
        argv = ["python3", "-c", begin + program]
        done = await asyncio.gather(*(vm.exec([*argv, name], timeout_s=LIMIT_S) for name in ("one", "two")))
        assert [each.exit_code for each in done] == [0, 0], [each.stderr for each in done]


@pytest.mark.slow
async def test_they_live_no_longer_than_the_first(template) -> None:
    program = """
if g.fork(1):
    time.sleep(600)
print("made", flush=True)
time.sleep(600)
"""
    async with template.fork(allow_guest_fork=1, ttl_s=6.0) as vm:
        begin = "import os, sys, time, vmfork_guest as g\n"
        with pytest.raises(MachineEnded, match="time to live"):
            await vm.exec(["python3", "-c", begin + program], timeout_s=LIMIT_S)
        while await VM.list():
            await asyncio.sleep(0.05)


# Without the library: what a program says that means no good.
HOSTILE = """
import os, socket
def asking():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect("/run/vmfork/ask")
    return sock
one = asking()
wrong = b"fork -1", b"fork 99999999999999999999", b"fork", b"fork 1 2", b"x", b"exit", b"exit 300 x", b"wait x"
for question in (*wrong, b"\\xff" * 4096, b"fork \\xb2"):
    one.send(question)
    answer = one.recv(8192)
    assert answer.startswith(b"refused "), (question, answer)
begun = __import__("time").monotonic()
socks = [asking() for _ in range(20)]
for sock in socks:
    sock.send(b"fork 100000")
    sock.send(b"fork 100000")
for sock in socks:
    assert sock.recv(8192).startswith(b"refused limit "), sock
print(__import__("time").monotonic() - begun > 0.9)
for sock in socks:
    sock.close()
"""


async def test_a_hostile_program_is_refused_and_slowed_down(template) -> None:
    async with allowed(template, 1) as vm:
        assert await run(vm, HOSTILE) == "True\n"
        assert (await vm.exec(["echo", "on"])).stdout == "on\n"
        assert await run(vm, "if g.fork(1): g.exit(3)\nprint(g.wait().status)") == "3\n"
