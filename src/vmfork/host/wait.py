"""The one wait on a descriptor: the event loop wakes us when it can be read or written, and no sooner."""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future
    from collections.abc import Callable

# A pipe that polls writable takes this much without blocking (PIPE_BUF, pipe(7)).
_WRITE_SIZE = 4096


async def wait_readable(fd: int) -> None:
    """Reading `fd` would not block: there is something, or its end. A pidfd: its process has ended.

    A descriptor has one waiter at a time. Regular files and /dev/null never wait.
    """
    loop = asyncio.get_running_loop()
    await _wait(fd, loop, loop.add_reader, loop.remove_reader)


async def wait_writable(fd: int) -> None:
    """Writing a little to `fd` would not block, or nobody reads it any more. Otherwise as `wait_readable`."""
    loop = asyncio.get_running_loop()
    await _wait(fd, loop, loop.add_writer, loop.remove_writer)


async def write_all(fd: int, data: bytes | memoryview) -> None:
    """All of `data` went to `fd`. Raises `BrokenPipeError` when nobody reads it any more."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    rest = memoryview(data)
    while rest:
        if not poll.poll(0):
            await wait_writable(fd)
        try:
            rest = rest[os.write(fd, rest[:_WRITE_SIZE]) :]
        except BlockingIOError:  # whoever gave it to us made it non-blocking
            await wait_writable(fd)


async def _wait(fd: int, loop: AbstractEventLoop, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    ready: Future[None] = loop.create_future()
    try:
        add(fd, _set, ready)
    except PermissionError:  # epoll refuses what never waits (EPERM, epoll_ctl(2))
        return
    try:
        await ready
    finally:
        remove(fd)


def _set(ready: Future[None]) -> None:
    # It stays readable: the loop may call a second time before the waiter ran and took its reader away.
    if not ready.done():
        ready.set_result(None)
