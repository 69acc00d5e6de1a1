"""A keeper's promises: one owner or none, and an end for what nobody owns. The keeper is the real one."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.children import exit_code_of, fork_child, wait_gone
from tests.unit.system_calls import called, check_declared, declared
from vmfork.errors import HostError, StoreBusy, VMNotFound
from vmfork.host import keeper
from vmfork.host.keeper import Answer, Beside, KeptProcess, Parked, Request, encode_request
from vmfork.host.process import ProcessIdentity, spawn
from vmfork.host.sockets import connect_unix, listen_unix

TOKEN, OTHER = b"t" * 16, b"o" * 16
LIMIT_S = 10


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keeper.sock"


@pytest.fixture
def lock(tmp_path):
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def kept(path, log, lock):
    """Starts a sleeper with a keeper."""

    def kept() -> KeptProcess:
        return KeptProcess.start(["sleep", "1000"], log_fd=log[1], listen_at=path, lock_fd=lock)

    return kept


class Belongings:
    """What an owner leaves with the keeper, with the other ends."""

    def __init__(self, folder) -> None:
        self.line, self.agent = socket.socketpair()
        self.console, self.guest = socket.socketpair()
        self.log = folder / "console.log"

    async def park(self, process: KeptProcess, *, token: bytes = TOKEN, ttl_s: float = 60.0) -> None:
        log_fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            await process.park(Parked(self.line.fileno(), self.console.fileno(), log_fd), token=token, ttl_s=ttl_s)
        finally:
            os.close(log_fd)
            self.line.close()
            self.console.close()

    def close(self) -> None:
        for end in (self.line, self.agent, self.console, self.guest):
            end.close()


@pytest.fixture
def belongings(tmp_path):
    found = Belongings(tmp_path)
    yield found
    found.close()


async def take(process, path, *, token: bytes = TOKEN):
    return await KeptProcess.take(path, token=token, identity=process.identity, vm_id="vm")


def close_all(fds) -> None:
    for fd in fds:
        os.close(fd)


async def wait_end(process: KeptProcess) -> int | None:
    return await asyncio.wait_for(process.wait(), LIMIT_S)


async def test_what_is_parked_is_had_again_with_all_that_was_left(path, belongings, lock, log) -> None:
    # Until it is the program it is still the keeper's own, by its arguments.
    argv = (sys.executable, "-c", "print('up', flush=True); import time; time.sleep(1000)")
    first = KeptProcess.start(argv, log_fd=log[1], listen_at=path, lock_fd=lock)
    assert os.read(log[0], 100) == b"up\n"
    await belongings.park(first)
    first.release()
    second, passed = await take(first, path)
    second.confirm()
    assert second.pid == first.pid
    assert second.argv == argv
    line, console, lock_again = passed
    assert os.path.samestat(os.fstat(lock_again), os.fstat(lock))
    os.write(line, b"to the agent")
    assert belongings.agent.recv(100) == b"to the agent"
    belongings.guest.send(b"from the guest")
    assert os.read(console, 100) == b"from the guest"
    close_all(passed)
    await second.aclose()
    assert second.has_ended
    assert await wait_end(first) == -signal.SIGKILL


async def test_it_changes_hands_many_times(kept, path, tmp_path) -> None:
    process = original = kept()
    for _ in range(10):
        belongings = Belongings(tmp_path)
        await belongings.park(process)
        process.release()
        process, passed = await take(original, path)
        process.confirm()
        close_all(passed)
        belongings.close()
    assert original.identity.is_alive()
    await process.aclose()
    await wait_end(original)


async def test_nobody_takes_what_somebody_owns(kept, path) -> None:
    process = kept()
    with pytest.raises(StoreBusy, match="VM vm"):
        await take(process, path)
    assert process.identity.is_alive()
    await process.aclose()


async def test_the_token_must_be_right_and_a_wrong_one_changes_nothing(kept, path, belongings) -> None:
    first = kept()
    await belongings.park(first)
    first.release()
    with pytest.raises(VMNotFound, match="earlier time"):
        await take(first, path, token=OTHER)
    second, passed = await take(first, path)
    second.confirm()
    close_all(passed)
    await second.aclose()
    await wait_end(first)


async def test_of_many_who_ask_at_once_one_gets_it(kept, path, belongings) -> None:
    first = kept()
    await belongings.park(first)
    first.release()
    results = await asyncio.gather(*(take(first, path) for _ in range(8)), return_exceptions=True)
    winners = [result for result in results if not isinstance(result, BaseException)]
    assert [type(result) for result in results if isinstance(result, BaseException)] == [StoreBusy] * 7
    ((second, passed),) = winners
    second.confirm()
    close_all(passed)
    await second.aclose()
    await wait_end(first)


async def test_a_time_to_live_that_is_over_ends_it(kept, path, belongings) -> None:
    process = kept()
    begun = time.monotonic()
    await belongings.park(process, ttl_s=0.2)
    process.release()
    assert await wait_end(process) == -signal.SIGKILL
    assert time.monotonic() - begun >= 0.2
    with pytest.raises(VMNotFound):
        await take(process, path)


async def test_without_a_time_to_live_it_waits(kept, path, belongings) -> None:
    process = kept()
    await belongings.park(process, ttl_s=0.0)
    process.release()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.3)
    taken, passed = await take(process, path)
    taken.confirm()
    close_all(passed)
    await taken.aclose()
    await wait_end(process)


async def test_who_takes_and_closes_before_confirming_ends_it(kept, path, belongings) -> None:
    first = kept()
    await belongings.park(first)
    first.release()
    second, passed = await take(first, path)
    close_all(passed)
    second._keeper.close()
    assert await wait_end(first) == -signal.SIGKILL
    await second.aclose()


async def test_a_taker_that_is_killed_before_confirming_ends_it(kept, path, belongings) -> None:
    first = kept()
    await belongings.park(first)
    first.release()
    ready, tell = os.pipe()

    def body() -> None:
        async def run() -> None:
            await take(first, path)
            os.write(tell, b"!")
            await asyncio.sleep(1000)

        asyncio.run(run())

    taker = fork_child(body)
    assert os.read(ready, 1) == b"!"
    os.kill(taker, signal.SIGKILL)
    assert exit_code_of(taker) == -signal.SIGKILL
    assert await wait_end(first) == -signal.SIGKILL
    os.close(ready)
    os.close(tell)


async def test_a_taker_that_is_killed_after_confirming_ends_it(kept, path, belongings) -> None:
    first = kept()
    await belongings.park(first)
    first.release()

    def body() -> None:
        async def run() -> None:
            taken, _ = await take(first, path)
            taken.confirm()
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(run())

    taker = fork_child(body)
    assert exit_code_of(taker) == -signal.SIGKILL
    assert await wait_end(first) == -signal.SIGKILL


async def test_an_owner_that_is_killed_right_after_parking_has_parked_it(kept, path, belongings, log) -> None:
    """The owner here is a child, so that it can be killed; we take what it left."""
    told, tell = os.pipe()

    def body() -> None:
        async def run() -> None:
            process = kept()
            await belongings.park(process)
            os.write(tell, b"%d %d\n" % (process.identity.pid, process.identity.start_ticks))
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(run())

    owner = fork_child(body)
    assert exit_code_of(owner) == -signal.SIGKILL
    identity = ProcessIdentity(*map(int, os.read(told, 100).split()))
    taken, passed = await KeptProcess.take(path, token=TOKEN, identity=identity, vm_id="vm")
    taken.confirm()
    assert identity.is_alive()
    close_all(passed)
    await taken.aclose()
    assert not identity.is_alive()
    os.close(told)
    os.close(tell)


async def test_a_console_nobody_owns_is_read_into_the_log_which_stays_bounded(kept, path, belongings) -> None:
    process = kept()
    await belongings.park(process)
    process.release()
    belongings.guest.settimeout(LIMIT_S)
    for number in range(64):
        belongings.guest.sendall(b"%08d" % number * 1024)  # would fill the socket many times over
    taken, passed = await take(process, path)
    taken.confirm()
    assert 0 < belongings.log.stat().st_size <= 128 * 1024
    close_all(passed)
    await taken.aclose()
    await wait_end(process)


@pytest.mark.parametrize(
    "message", [b"", b"x", b"\0" * 25, b"\x63" + bytes(24), encode_request(Request.TAKEN), b"y" * 4096]
)
async def test_nonsense_from_a_caller_is_refused_and_changes_nothing(kept, path, message) -> None:
    process = kept()
    with connect_unix(path, kind=socket.SOCK_SEQPACKET) as caller:
        caller.setblocking(True)
        caller.settimeout(LIMIT_S)
        caller.send(message)
        with suppress(ConnectionError):
            answer = caller.recv(16)
            assert answer[:1] in (bytes([Answer.BAD]), b"")
    assert process.identity.is_alive()
    await process.aclose()


@pytest.mark.parametrize("message", [b"", b"x", encode_request(Request.TAKE, token=OTHER)])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 60])
async def test_descriptors_that_a_caller_passes_are_closed_however_many(kept, path, message, count) -> None:
    """Four of them arrive in the space for three, and an empty message has some too."""
    process = kept()
    reading, writing = os.pipe()
    with connect_unix(path, kind=socket.SOCK_SEQPACKET) as caller:
        caller.setblocking(True)
        caller.settimeout(LIMIT_S)
        socket.send_fds(caller, [message], [writing] * count)
        os.close(writing)
        with suppress(ConnectionError):
            assert caller.recv(16)[:1] in (bytes([Answer.BAD]), bytes([Answer.BUSY]), b"")
        assert select.select([reading], [], [], LIMIT_S)[0]
        assert os.read(reading, 1) == b""  # nobody has its other end any more
    os.close(reading)
    assert process.identity.is_alive()
    await process.aclose()


async def test_callers_who_say_nothing_do_not_keep_others_out(kept, path, belongings) -> None:
    process = kept()
    await belongings.park(process)
    process.release()
    silent = [connect_unix(path, kind=socket.SOCK_SEQPACKET) for _ in range(7)]
    taken, passed = await take(process, path)
    taken.confirm()
    close_all(passed)
    for caller in silent:
        caller.close()
    await taken.aclose()
    await wait_end(process)


async def test_a_keeper_that_is_gone_takes_nothing_over(kept, path, belongings) -> None:
    process = kept()
    assert select.select([process._keeper], [], [], LIMIT_S)[0]  # it has said who it is
    (its_keeper,) = [pid for pid in children() if pid != process.pid]
    os.kill(its_keeper, signal.SIGKILL)
    pidfd = os.pidfd_open(its_keeper)
    assert wait_gone(pidfd)
    os.close(pidfd)
    with pytest.raises(HostError, match="keeper is gone"):
        await belongings.park(process)
    await process.aclose()
    assert process.exit_code == -signal.SIGKILL
    with pytest.raises(VMNotFound):
        await take(process, path)


async def test_a_keeper_that_ends_before_it_answers_is_told_as_gone(kept, belongings) -> None:
    process = kept()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    real, process._keeper = process._keeper, ours
    try:
        parking = asyncio.ensure_future(belongings.park(process))
        await asyncio.sleep(0)
        _, passed, _, _ = socket.recv_fds(its, 64, 8)
        close_all(passed)
        its.close()
        with pytest.raises(HostError, match="keeper is gone"):
            await parking
    finally:
        process._keeper = real
        ours.close()
        await process.aclose()


def test_the_end_of_the_loop_that_watched_it_leaves_neither_descriptor_nor_zombie(kept, belongings) -> None:
    """Who starts a machine that outlives him may have many loops."""

    async def pass_on() -> KeptProcess:
        process = kept()
        await belongings.park(process)
        process.release()
        return process

    before = set(os.listdir("/proc/self/fd"))
    process = asyncio.run(pass_on())
    pid = process.pid
    (keeper_pid,) = set(children()) - {pid}
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid, keeper_pid)
    assert {pid, keeper_pid} <= set(children())
    del process
    assert not {pid, keeper_pid} & set(children())
    assert set(os.listdir("/proc/self/fd")) <= before


def test_one_that_the_collector_finds_in_a_cycle_is_reaped_with_its_keeper(kept) -> None:
    """It finalizes a socket before or after who needs it, as it comes."""

    class Owner:
        def __init__(self, process: KeptProcess) -> None:
            self.process, self.itself = process, self

        def __del__(self) -> None:
            self.process.end()

    async def own() -> None:
        Owner(kept())

    before = set(children())
    asyncio.run(own())
    gc.collect()
    assert set(children()) == before


def wait_ended(*pids: int) -> None:
    """Children, which become zombies."""
    for pid in pids:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


@pytest.fixture
def beside(tmp_path, log):
    """A sleeper that serves another, with a pidfd, and where the monitor of that is."""
    child = spawn(["sleep", "1000"], log_fd=log[1], pass_fds=(), env={"PATH": os.environ["PATH"]})
    pidfd = os.pidfd_open(child.pid)
    yield Beside(child.pid, pidfd, None, tmp_path / "qmp.sock")
    child.kill()
    child.wait()
    os.close(pidfd)


def ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], LIMIT_S)[0])


async def test_what_stands_beside_it_ends_with_it_and_is_reaped(path, log, beside) -> None:
    process = KeptProcess.start(["sleep", "1000"], log_fd=log[1], listen_at=path, beside=beside)
    os.kill(process.pid, signal.SIGKILL)
    assert await wait_end(process) == -signal.SIGKILL
    assert ended(beside.process)
    assert not os.path.exists(f"/proc/{beside.pid}")
    await process.aclose()


async def test_the_monitor_is_asked_for_a_card_without_a_carrier_when_what_stands_beside_it_ends_first(
    path, log, beside
) -> None:
    with listen_unix(beside.monitor) as monitor:
        process = KeptProcess.start(["sleep", "1000"], log_fd=log[1], listen_at=path, beside=beside)
        os.kill(beside.pid, signal.SIGKILL)
        monitor.settimeout(LIMIT_S)
        line, _ = monitor.accept()
        with line:
            line.settimeout(LIMIT_S)
            line.sendall(b'{"QMP": {}}\r\n')
            asked = b""
            while asked.count(b"\n") < 2:
                asked += line.recv(4096)
            assert b'"set_link", "arguments": {"name": "card", "up": false}' in asked
            line.sendall(b'{"return": {}}\r\n{"return": {}, "id": "vmfork-card-lost"}\r\n')
            assert line.recv(1) == b""  # it hangs up, for whoever comes next
        assert b"passt has ended" in os.read(log[0], 4096)
        assert process.identity.is_alive()
        await process.aclose()


async def test_a_monitor_that_is_not_there_is_nobody_to_ask(path, log, beside) -> None:
    process = KeptProcess.start(["sleep", "1000"], log_fd=log[1], listen_at=path, beside=beside)
    os.kill(beside.pid, signal.SIGKILL)
    assert ended(beside.process)
    assert process.identity.is_alive()
    await process.aclose()


@pytest.mark.needs("strace")
async def test_it_makes_the_system_calls_its_readme_declares(kept, path, belongings, tmp_path, monkeypatch) -> None:
    trace, traced = tmp_path / "trace", tmp_path / "traced"
    real = keeper.find_keeper()
    # -D: strace stands beside, so that the pid is the keeper's; -b: the program it becomes is not watched.
    traced.write_text(f'#!/bin/sh\nexec strace -D -f -b execve -o {trace} {real} "$@"\n')
    traced.chmod(0o755)
    monkeypatch.setattr(keeper, "find_keeper", lambda: traced)
    first = kept()
    await belongings.park(first)
    first.release()
    belongings.guest.settimeout(LIMIT_S)
    for _ in range(64):
        belongings.guest.sendall(bytes(8192))
    second, passed = await take(first, path)
    second.confirm()
    close_all(passed)
    second._keeper.close()
    assert await wait_end(first) == -signal.SIGKILL
    await second.aclose()
    wait_text(trace, "+++ ")
    calls = declared("keeper")
    check_declared(called(trace), calls["at work"], calls["between"])


def wait_text(path: Path, text: str) -> None:
    """strace writes what it saw a moment after it happened."""
    end = time.monotonic() + LIMIT_S
    while text not in path.read_text():
        assert time.monotonic() < end, path.read_text()[-500:]
        time.sleep(0.01)
