"""A kept child ends when told, when its owner does, and is reaped; a pid used again is not mistaken for it."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.children import exit_code_of, fork_child
from vmfork.host.keeper import KeptProcess, find_keeper
from vmfork.host.process import ProcessIdentity, WatchedProcess, is_ending, read_starved_s, spawn, watch

PR_SET_CHILD_SUBREAPER = 36
IGNORES_TERM = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000 & wait; done"]


@pytest.fixture
async def start(tmp_path):
    """Starts a kept process, whose keeper listens somewhere. In the end all of them are closed."""
    started: list[KeptProcess] = []

    def start(argv: list[str], *, log_fd: int, **options) -> KeptProcess:
        process = KeptProcess.start(argv, log_fd=log_fd, listen_at=tmp_path / f"{len(started)}.sock", **options)
        started.append(process)
        return process

    yield start
    for process in started:
        await process.aclose()


@pytest.fixture
def orphans_are_ours():
    """Whose parent dies becomes our child, so that we may see how it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Running


async def test_a_program_runs_to_its_end_and_is_reaped(start, log):
    process = start(["sh", "-c", "echo out; echo err >&2; exit 7"], log_fd=log[1])
    assert await process.wait() == 7
    assert process.exit_code == 7
    assert os.read(log[0], 100) == b"out\nerr\n"
    assert not Path(f"/proc/{process.pid}").exists()
    assert not process.identity.is_alive()
    await process.aclose()


async def test_arguments_arrive_as_they_are(start, log):
    words = ["printf", "%s|", "", "a b", "$0", "'\"", "*", "-x", "ü", "$(id)"]
    process = start(words, log_fd=log[1])
    assert await process.wait() == 0
    assert os.read(log[0], 1000).decode() == "".join(word + "|" for word in words[2:])
    assert process.argv == tuple(words)


async def test_the_program_has_the_pid_that_was_told_and_a_session_of_its_own(start, log):
    process = start(["sh", "-c", "echo $$; cat /proc/self/stat"], log_fd=log[1])
    await process.wait()
    pid, stat = os.read(log[0], 1000).decode().splitlines()
    assert int(pid) == process.pid
    assert stat.rpartition(")")[2].split()[3] == str(process.pid) != str(os.getsid(0))


async def test_descriptors_are_passed_under_their_numbers_and_no_others(start, log):
    passed, kept = os.pipe(), os.pipe()
    os.set_inheritable(kept[1], False)
    process = start(["sh", "-c", "echo >&2 /proc/$$/fd/*"], log_fd=log[1], pass_fds=[passed[1]])
    assert await process.wait() == 0
    numbers = {int(word.rpartition("/")[2]) for word in os.read(log[0], 1000).decode().split()}
    assert numbers & {*passed, *kept, *log} == {passed[1]}
    assert {0, 1, 2} <= numbers
    for fd in (*passed, *kept):
        os.close(fd)


async def test_a_child_reads_nothing_of_our_input(start, log):
    process = start(["cat"], log_fd=log[1])
    assert await process.wait() == 0


async def test_a_program_that_is_not_there_is_told(start, log):
    process = start(["no-such-program"], log_fd=log[1])
    assert await process.wait() == 127
    assert b"no-such-program" in os.read(log[0], 1000)


async def test_exit_is_told_to_all_who_asked_before_or_after(start, log):
    told = []
    process = start(["false"], log_fd=log[1])
    process.on_exit(told.append)
    assert process.exit_code is None
    assert await asyncio.gather(process.wait(), process.wait()) == [1, 1]
    process.on_exit(told.append)
    await asyncio.sleep(0)
    assert told == [1, 1]


async def test_a_cancelled_wait_leaves_the_process_running_and_reapable(start, log):
    process = start(["sleep", "1000"], log_fd=log[1])
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert process.identity.is_alive()
    await process.aclose()
    assert process.exit_code == -signal.SIGKILL


# Stopping


async def test_a_cancelled_close_reaps_and_ending_it_again_does_nothing(start, log):
    process = start(["sleep", "1000"], log_fd=log[1])
    waiting = asyncio.create_task(process.wait())
    closing = asyncio.create_task(process.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not Path(f"/proc/{process.pid}").exists()
    assert process.has_ended
    descriptor = os.open("/dev/null", os.O_RDONLY)  # with the number that was free just now
    process.end()
    process.kill()
    os.close(descriptor)
    assert await asyncio.wait_for(waiting, 60) == -signal.SIGKILL


def test_ended_after_its_loop_it_is_reaped_once(tmp_path, log):
    async def begin() -> KeptProcess:
        return KeptProcess.start(["sleep", "1000"], log_fd=log[1], listen_at=tmp_path / "keeper.sock")

    process = asyncio.run(begin())
    for _ in range(2):
        process.end()
        assert process.has_ended
        assert not Path(f"/proc/{process.pid}").exists()


@pytest.fixture
def held(tmp_path):
    """A program that ends when it is let go."""
    path = tmp_path / "held"
    os.mkfifo(path)
    return ["sh", "-c", f"read -r word < {path}"], lambda: path.write_text("go\n")


def spawn_watched(argv: list[str], log_fd: int) -> WatchedProcess:
    return watch(spawn(argv, log_fd=log_fd, pass_fds=(), env={}), argv)


def test_what_is_let_end_is_reaped_also_after_the_loop(held, log):
    async def begin() -> int:
        process = spawn_watched(held[0], log[1])
        process.let_end()
        return process.pid

    pid = asyncio.run(begin())
    (reaper,) = (thread for thread in threading.enumerate() if thread.name == f"vmfork-reap-{pid}")
    assert state_of(pid) != "Z"
    held[1]()
    reaper.join(20)
    assert not Path(f"/proc/{pid}").exists()


async def test_what_is_let_end_and_has_ended_was_reaped(log):
    process = spawn_watched(["true"], log[1])
    assert await process.wait() == 0
    process.let_end()
    assert not any(thread.name == f"vmfork-reap-{process.pid}" for thread in threading.enumerate())


async def test_where_no_thread_is_to_be_had_it_is_waited_for(log, monkeypatch):
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    process = spawn_watched(["true"], log[1])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    process.let_end()
    assert not Path(f"/proc/{process.pid}").exists()


async def test_a_child_that_cannot_be_watched_is_gone(held, log, monkeypatch):
    child = spawn(held[0], log_fd=log[1], pass_fds=(), env={})

    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many"):
        watch(child, held[0])
    assert child.returncode == -signal.SIGKILL


async def test_term_then_kill_ends_a_process_that_ignores_term(start, log):
    process = start(IGNORES_TERM, log_fd=log[1])
    assert os.read(log[0], 100) == b"ready\n"
    process.send_signal(signal.SIGTERM)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.2)
    assert process.identity.is_alive()
    os.killpg(process.pid, signal.SIGKILL)  # with the sleep that it started
    await process.aclose()
    assert process.exit_code == -signal.SIGKILL


async def test_term_ends_a_process_that_heeds_it(start, log):
    process = start(["sleep", "1000"], log_fd=log[1])
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGTERM


async def test_a_stopped_process_can_be_killed(start, log):
    process = start(["sleep", "1000"], log_fd=log[1])
    process.send_signal(signal.SIGSTOP)
    await process.aclose()
    assert process.exit_code == -signal.SIGKILL


async def test_signals_to_one_that_has_ended_do_nothing(start, log):
    process = start(["true"], log_fd=log[1])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but the loop has not seen it yet
    process.send_signal(signal.SIGTERM)
    process.kill()
    assert await process.wait() == 0
    process.send_signal(signal.SIGTERM)
    process.kill()
    await process.aclose()
    assert process.exit_code == 0


# The owner


def reap_orphans() -> None:
    """Every child that is left has ended by itself, and is reaped."""
    with suppress(ChildProcessError):
        while True:
            assert os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) == 0


def read_lines(fd: int, count: int) -> list[str]:
    data = b""
    while data.count(b"\n") < count:
        data += os.read(fd, 100)
    return data.decode().split()


@pytest.mark.usefixtures("orphans_are_ours")
@pytest.mark.parametrize("trap", ["", "trap '' TERM HUP INT;"])
def test_a_process_dies_with_an_owner_that_is_killed(start, log, trap):
    async def own():
        process = start(["sh", "-c", f"{trap} echo ready; exec sleep 1000"], log_fd=log[1])
        os.write(log[1], b"%d\n" % process.pid)
        await process.wait()

    owner = fork_child(lambda: asyncio.run(own()))
    (pid,) = [int(line) for line in read_lines(log[0], 2) if line != "ready"]
    assert ProcessIdentity.of(pid) is not None
    os.kill(owner, signal.SIGKILL)
    assert exit_code_of(owner) == -signal.SIGKILL
    assert exit_code_of(pid) == -signal.SIGKILL
    reap_orphans()


@pytest.fixture
def slow_keeper(tmp_path, monkeypatch):
    """A keeper that waits for a line in the FIFO given here before it is itself: what may happen, made certain."""
    real, fifo, program = find_keeper(), tmp_path / "fifo", tmp_path / "keeper"
    os.mkfifo(fifo)
    program.write_text(f'#!/bin/sh\nread -r line < {fifo}\nexec {real} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr("vmfork.host.keeper.find_keeper", lambda: program)
    return fifo


@pytest.mark.usefixtures("orphans_are_ours")
def test_a_process_does_not_outlive_an_owner_that_was_killed_before_its_keeper_was_there(start, log, slow_keeper):
    async def own():
        process = start(["sleep", "1000"], log_fd=log[1])
        os.write(log[1], b"%d\n" % process.pid)
        os.kill(os.getpid(), signal.SIGKILL)

    owner = fork_child(lambda: asyncio.run(own()))
    assert exit_code_of(owner) == -signal.SIGKILL
    pid = int(read_lines(log[0], 1)[0])
    slow_keeper.write_text("go on\n")
    assert exit_code_of(pid) == -signal.SIGKILL
    reap_orphans()


# Identity


@contextmanager
def sleeper(name: str = "sleep"):
    process = subprocess.Popen([name, "1000"], stdin=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def test_an_identity_is_of_one_process_only():
    with sleeper() as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        assert identity.is_alive()
        assert identity == ProcessIdentity.of(process.pid)
        recycled = ProcessIdentity(process.pid, identity.start_ticks - 1)
        assert not recycled.is_alive()
        assert not recycled.kill()
        assert process.poll() is None
        assert identity.kill()
        assert process.wait() == -signal.SIGKILL
    assert not identity.is_alive()
    assert not identity.kill()
    assert ProcessIdentity.of(process.pid) is None


def test_a_start_time_is_in_ticks_since_the_boot():
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < me.start_ticks <= uptime * os.sysconf("SC_CLK_TCK")


def test_a_zombie_is_none():
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert state_of(process.pid) == "Z"
    assert ProcessIdentity.of(process.pid) is None
    process.wait()


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**31])
def test_what_was_never_a_pid_is_none(pid):
    assert ProcessIdentity.of(pid) is None
    identity = ProcessIdentity(pid, 1)
    assert not identity.is_alive()
    assert not identity.kill()


@pytest.mark.parametrize("name", ["a) R 1 2 3 (b", ") Z 1", "two words", "\n)"])
def test_a_program_may_be_called_anything(tmp_path, name):
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    with sleeper(str(program)) as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        assert identity.is_alive()
        assert identity.start_ticks >= ProcessIdentity.of(os.getpid()).start_ticks


def test_a_process_that_shares_its_cpu_is_seen_to_wait_for_it():
    """Two that never rest, on one CPU."""
    spin = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(spin) as one, subprocess.Popen(spin) as other:
        try:
            end = time.monotonic() + 30
            while read_starved_s(one.pid) < 0.2 and time.monotonic() < end:
                time.sleep(0.05)
            assert read_starved_s(one.pid) >= 0.2
        finally:
            one.kill()
            other.kill()
    assert read_starved_s(one.pid) == 0


def test_one_loop_after_another_may_start_processes(start, log):
    """Two runs after each other in one process, as `asyncio.run` is used by the command line."""

    async def run():
        return await start([sys.executable, "-c", "raise SystemExit(3)"], log_fd=log[1]).wait()

    assert [asyncio.run(run()), asyncio.run(run())] == [3, 3]


def test_one_that_has_ended_is_ending_whether_it_was_reaped_or_not() -> None:
    assert not is_ending(os.getpid())
    with subprocess.Popen(["sleep", "1000"]) as child:
        assert not is_ending(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_ending(child.pid)
        child.wait()
        assert is_ending(child.pid)
