"""Our standard streams, awaited: a slow reader or an idle writer never keeps the loop from a signal or a deadline."""

from __future__ import annotations

import os
import select

from vmfork.host.wait import wait_readable, wait_writable

_READ_SIZE = 65_536
# A pipe that polls writable takes this much without blocking (PIPE_BUF, pipe(7)).
_WRITE_SIZE = 4096


def is_readable_input(fd: int) -> bool:
    """Whether `fd` is open, and reading it would not stop us: only the foreground may read a terminal."""
    try:
        return not os.isatty(fd) or os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


async def read_some(fd: int) -> bytes:
    """The next bytes of `fd`; empty at its end."""
    try:
        await wait_readable(fd)
        return os.read(fd, _READ_SIZE)
    except OSError:  # closed, or the terminal has gone: the same as its end
        return b""


async def write_all(fd: int, data: bytes) -> None:
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
