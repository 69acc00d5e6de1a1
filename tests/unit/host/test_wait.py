"""A descriptor is waited for without a turn of the loop too many, and nothing of the wait is left."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from vmfork.host.wait import wait_readable, wait_writable


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


async def test_what_can_be_read_wakes_the_waiter(pipe) -> None:
    waiting = asyncio.ensure_future(wait_readable(pipe[0]))
    await asyncio.sleep(0)
    assert not waiting.done()
    os.write(pipe[1], b"x")
    await asyncio.wait_for(waiting, 60)
    await asyncio.wait_for(wait_readable(pipe[0]), 60)  # it still is


async def test_a_full_pipe_is_waited_for(pipe) -> None:
    os.set_blocking(pipe[1], False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(pipe[1], bytes(65536))
    waiting = asyncio.ensure_future(wait_writable(pipe[1]))
    await asyncio.sleep(0)
    assert not waiting.done()
    os.read(pipe[0], 65536)
    await asyncio.wait_for(waiting, 60)


async def test_a_process_that_ends_wakes_who_watches_it() -> None:
    with subprocess.Popen(["true"]) as process:
        fd = os.pidfd_open(process.pid)
        try:
            await asyncio.wait_for(wait_readable(fd), 60)
        finally:
            os.close(fd)


async def test_a_cancelled_wait_leaves_the_descriptor_to_the_next(pipe) -> None:
    waiting = asyncio.ensure_future(wait_readable(pipe[0]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not asyncio.get_running_loop().remove_reader(pipe[0])
    os.write(pipe[1], b"x")
    await asyncio.wait_for(wait_readable(pipe[0]), 60)


async def test_what_never_waits_is_not_waited_for(tmp_path) -> None:
    for path in (tmp_path / "file", os.devnull):
        with open(path, "w+b", buffering=0) as file:
            await asyncio.wait_for(wait_readable(file.fileno()), 60)
            await asyncio.wait_for(wait_writable(file.fileno()), 60)


async def test_a_closed_descriptor_is_an_error_at_once(pipe) -> None:
    fd = os.dup(pipe[0])
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await wait_readable(fd)
