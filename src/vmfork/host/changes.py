"""A folder whose entries come and go, watched (inotify(7))."""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from vmfork.host.wait import wait_readable

if TYPE_CHECKING:
    from pathlib import Path

_MOVED_FROM, _DELETE = 0x40, 0x200
_READ_SIZE = 65_536


class DepartureWatch:
    """Owner of a watch on a folder, from the moment it is opened. Where none can be had, `wait` only takes its time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls, folder: Path) -> Self:
        """What leaves `folder` from now on is noticed."""
        libc = ctypes.CDLL(None, use_errno=True)
        fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd >= 0 and libc.inotify_add_watch(fd, os.fsencode(folder), _MOVED_FROM | _DELETE) < 0:
            os.close(fd)
            fd = -1
        return cls(fd)

    async def wait(self, limit_s: float) -> None:
        """Something left the folder since the last wait, or `limit_s` seconds have passed."""
        if self._fd < 0:
            await asyncio.sleep(limit_s)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await wait_readable(self._fd)
                os.read(self._fd, _READ_SIZE)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
