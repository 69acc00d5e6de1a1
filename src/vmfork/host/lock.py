"""Advisory locks on files. The holder of one is alive: the kernel releases the lock with the process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

from vmfork.errors import HostError, StoreBusy
from vmfork.host.folders import NO_FILE, open_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from types import TracebackType

# flock(2) can be waited for only in a thread, which could not be cancelled. So it is tried again this often.
_RETRY_S = 0.02


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


class FileLock:
    """Owner of an flock(2) on the file at `path`.

    The descriptor is close-on-exec, so no child keeps the lock alive. A holder may leave a line that says who it is.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self.path = path

    @classmethod
    def try_acquire(
        cls, path: Path, *, shared: bool = False, holder: str = "", must_exist: bool = False
    ) -> Self | None:
        """The lock, or `None` when another holds it.

        An exclusive lock makes the file (0600) where it is missing, unless it `must_exist`. Raises `FileNotFoundError`
        when the folder is gone, or, for a shared lock, the file: what a reader came for went with it, and a new file
        would stand in the way. Raises `HostError` when something that is no file stands in its place.
        """
        missing = 0 if shared or must_exist else os.O_CREAT
        while True:
            fd = _open(path, missing)
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if _is_at(fd, path):
                    if holder and not shared:
                        os.truncate(fd, 0)
                        with suppress(OSError):  # a full file system: the lock holds without the line
                            os.pwrite(fd, holder.encode(), 0)
                    return cls(fd, path)
            except BlockingIOError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            # The last holder removed the file together with its folder: this is a lock on nothing.
            os.close(fd)

    @classmethod
    async def acquire(cls, path: Path, *, shared: bool = False, holder: str = "", wait_s: float = 0.0) -> Self | None:
        """The lock, or `None` when another still holds it after `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while True:
            lock = cls.try_acquire(path, shared=shared, holder=holder)
            if lock is not None or time.monotonic() >= end:
                return lock
            await asyncio.sleep(_RETRY_S)

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor: whoever inherits it holds the lock too."""
        return self._fd

    def close(self) -> None:
        """The lock is free. Closing again does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@asynccontextmanager
async def locked_folder(folder: Path, *, wait_s: float) -> AsyncIterator[None]:
    """Nobody else is in such a block for `folder`. Raises `StoreBusy` after `wait_s` seconds.

    The lock is on the folder itself, so that nothing need be made for it, or be left.
    """
    fd, end = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), time.monotonic() + wait_s
    try:
        while not try_lock(fd):
            if time.monotonic() >= end:
                raise StoreBusy(str(folder))
            await asyncio.sleep(_RETRY_S)
        yield
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Whether nobody had the lock of that open file, in either mode. It is the opener's then, until it is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, missing: int) -> int:
    try:
        return open_file(path, os.O_RDWR | missing)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise HostError(
            f"{path} is not a file, where a lock belongs", hint=f"see what put it there, and remove it: {path}"
        ) from error


def is_locked(path: Path) -> bool:
    """Whether someone holds the lock at `path`, in either mode. A missing file is not locked."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)


def read_holder(path: Path) -> str:
    """What the holder of the lock at `path` wrote of itself; empty when it wrote nothing."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
