"""Our standard streams, awaited: a slow reader or an idle writer never keeps the loop from a signal or a deadline."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from vmfork.errors import VMForkError
from vmfork.host.wait import wait_readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from typing import Any

    from vmfork.agent.process import GuestProcess

_READ_SIZE = 65_536


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


async def feed(process: GuestProcess) -> None:
    """The process has read all of our standard input, and its end."""
    while data := await read_some(0):
        await process.write_stdin(data)
    await process.close_stdin()


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """`work` is done beside the block, and given up at its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, VMForkError):
            await task
