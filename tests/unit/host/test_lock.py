"""Who holds a lock is alive; who waits for one can be cancelled; nobody locks a file that is gone."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time

import pytest

from tests.children import exit_code_of, fork_child
from tests.rules.traces import open_descriptors
from vmfork.errors import HostError
from vmfork.host.lock import FileLock, is_locked, read_holder


@pytest.fixture(autouse=True)
def no_descriptor_left():
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock"


class Holder:
    """A child process that holds the lock until it is told to end, or killed."""

    def __init__(self, path, *, shared=False):
        self._ready, self._end = os.pipe(), os.pipe()

        def hold():
            with FileLock.try_acquire(path, shared=shared, holder=f"process {os.getpid()}"):
                os.write(self._ready[1], b"x")
                os.read(self._end[0], 1)

        self.pid = fork_child(hold)
        os.read(self._ready[0], 1)

    def end(self) -> None:
        os.write(self._end[1], b"x")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
        exit_code_of(self.pid)
        for fd in (*self._ready, *self._end):
            os.close(fd)


def test_an_exclusive_lock_excludes_both_modes(path):
    with FileLock.try_acquire(path) as lock:
        assert not lock.closed
        assert is_locked(path)
        assert FileLock.try_acquire(path) is None
        assert FileLock.try_acquire(path, shared=True) is None
    assert lock.closed
    assert not is_locked(path)
    lock.close()


def test_shared_locks_exclude_only_the_exclusive_one(path):
    path.touch()
    with FileLock.try_acquire(path, shared=True), FileLock.try_acquire(path, shared=True):
        assert is_locked(path)
        assert FileLock.try_acquire(path) is None
    with FileLock.try_acquire(path):
        pass


def test_the_file_is_made_private_where_it_is_missing_but_not_for_a_reader(path):
    assert not is_locked(path)
    with pytest.raises(FileNotFoundError):
        FileLock.try_acquire(path, shared=True)
    assert not path.exists()
    FileLock.try_acquire(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_folder_is_an_error_and_a_link_is_not_followed(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        FileLock.try_acquire(tmp_path / "nowhere" / "lock")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="is not a file, where a lock belongs"):
        FileLock.try_acquire(path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_no_lock(path, make, shared):
    make(path)
    with pytest.raises(HostError, match="is not a file") as caught:
        FileLock.try_acquire(path, shared=shared)
    assert str(path) in caught.value.hint


def test_a_lock_that_must_exist_is_not_made(path):
    with pytest.raises(FileNotFoundError):
        FileLock.try_acquire(path, must_exist=True)
    assert not path.exists()


def test_a_child_does_not_inherit_a_lock(path):
    """The holder starts a program that lives longer than the lock."""
    with FileLock.try_acquire(path) as lock:
        assert not os.get_inheritable(lock._fd)


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_of_another_process_holds_and_ends_with_it(path, shared):
    path.touch()
    with Holder(path, shared=shared) as holder:
        assert is_locked(path)
        assert FileLock.try_acquire(path) is None
        reader = FileLock.try_acquire(path, shared=True)
        assert (reader is not None) == shared
        if reader:
            reader.close()
        os.kill(holder.pid, signal.SIGKILL)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with FileLock.try_acquire(path):
            pass


def test_the_holder_says_who_it_is_and_the_next_one_replaces_it(path):
    assert read_holder(path) == ""
    with Holder(path) as holder:
        assert read_holder(path) == f"process {holder.pid}"
        assert FileLock.try_acquire(path, holder="a process that was refused") is None
        assert read_holder(path) == f"process {holder.pid}"
    FileLock.try_acquire(path, holder="me").close()
    assert read_holder(path) == "me"


async def test_acquire_gives_up_at_its_deadline(path):
    with FileLock.try_acquire(path):
        assert await FileLock.acquire(path) is None
        start = time.monotonic()
        assert await FileLock.acquire(path, wait_s=0.1) is None
        assert 0.1 <= time.monotonic() - start < 60


async def test_acquire_gets_what_another_process_lets_go(path):
    with Holder(path) as holder:
        waiting = asyncio.create_task(FileLock.acquire(path, wait_s=20, holder="the next"))
        await asyncio.sleep(0)
        assert not waiting.done()
        holder.end()
        with await waiting:
            assert read_holder(path) == "the next"


async def test_a_cancelled_wait_holds_nothing(path):
    with FileLock.try_acquire(path):
        waiting = asyncio.create_task(FileLock.acquire(path, wait_s=20))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    with FileLock.try_acquire(path):
        pass


async def test_who_waits_for_a_file_that_goes_away_gets_the_new_one(path):
    old = FileLock.try_acquire(path)
    waiting = asyncio.create_task(FileLock.acquire(path, wait_s=20))
    await asyncio.sleep(0)
    path.unlink()
    old.close()
    with await waiting as lock:
        assert os.fstat(lock._fd).st_ino == path.stat().st_ino
        assert is_locked(path)


async def test_who_waits_in_a_folder_that_goes_away_is_told(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    old = FileLock.try_acquire(folder / "lock")
    waiting = asyncio.create_task(FileLock.acquire(folder / "lock", wait_s=20))
    await asyncio.sleep(0)
    shutil.rmtree(folder)
    old.close()
    with pytest.raises(FileNotFoundError):
        await waiting


def test_of_many_processes_one_at_a_time_holds_it(path, tmp_path):
    """Each adds one to a number, with a read and a write between which another would be noticed."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count():
        for _ in range(25):
            with asyncio.run(FileLock.acquire(path, wait_s=30)):
                number = int(counter.read_text())
                os.sched_yield()
                counter.write_text(str(number + 1))

    pids = [fork_child(count) for _ in range(4)]
    assert [exit_code_of(pid) for pid in pids] == [0] * 4
    assert counter.read_text() == "100"
