"""The file that holds a template's RAM: sparse, so what was never touched costs nothing and is not read."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PAGE = 4096
_ZEROS = bytes(PAGE)
# What is read at a time: other threads run while it is hashed, and a processor keeps it near.
_STEP_PAGES = 64
# A page with its position before it, as it goes into the digest.
_ITEM = 8 + PAGE
_POSITIONS = struct.Struct(f">{f'Q{PAGE}x' * _STEP_PAGES}")


@dataclass(frozen=True, slots=True)
class RAMDigest:
    """SHA-256 over the parts of a file that hold data, each with its position; `allocated_bytes` is their sum."""

    sha256: str
    allocated_bytes: int


def create_ram_file(path: Path, *, size_bytes: int) -> int:
    """A descriptor, for the caller to close, of a new sparse file of `size_bytes`, read-write, mode 0600."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def digest_ram(path: Path) -> RAMDigest:
    """The digest of the RAM file at `path`."""
    with path.open("rb", buffering=0) as file:
        return digest_open_ram(file.fileno())


def digest_open_ram(fd: int) -> RAMDigest:
    """The digest of the RAM file open as `fd`. Takes about a second a GiB of data; zeros and holes count alike."""
    digesting = RAMDigesting(fd)
    digesting.go_on(sys.maxsize)
    return digesting.found


class RAMDigesting:
    """The digest of the RAM file open as `fd`, part by part, so that it can be made while the file is written.

    A hole may become a page of zeros when a reader maps it, so pages of zeros are left out of the digest. Pages are
    read to where they are hashed, each behind its position: nobody copies them.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._total = hashlib.sha256()
        self._at = self._allocated = 0
        self._items = bytearray(_STEP_PAGES * _ITEM)
        self._view = memoryview(self._items)
        self._pages = [self._view[at + 8 : at + _ITEM] for at in range(0, len(self._items), _ITEM)]

    def go_on(self, end: int) -> None:
        """What lies before `end` is in the digest; nobody writes there any more. Both ends are a page's."""
        step = _STEP_PAGES * PAGE
        for start, stop in find_extents(self._fd, self._at, end):
            self._allocated += stop - start
            for position in range(start, stop, step):
                self._add(position, min(_STEP_PAGES, (stop - position) // PAGE))
        self._at = max(self._at, end)

    def _add(self, position: int, count: int) -> None:
        """The `count` pages from `position` on are in the digest, without those of zeros."""
        _POSITIONS.pack_into(self._items, 0, *range(position, position + _STEP_PAGES * PAGE, PAGE))
        read_pages(self._fd, self._pages[:count], position)
        begin, end = 0, count * _ITEM
        for at in range(0, end, _ITEM):
            if self._items.startswith(_ZEROS, at + 8):
                if begin < at:
                    self._total.update(self._view[begin:at])
                begin = at + _ITEM
        if begin < end:
            self._total.update(self._view[begin:end])

    @property
    def found(self) -> RAMDigest:
        """The digest of what it went over."""
        return RAMDigest(self._total.hexdigest(), self._allocated)


def read_pages(fd: int, into: Sequence[memoryview], position: int) -> None:
    """What the RAM file has from `position` on, which is no end of it, is in all of `into`. Raises `OSError`."""
    wanted = sum(map(len, into))
    if (read := os.preadv(fd, into, position)) != wanted:
        raise OSError(errno.EIO, f"{read} of {wanted} bytes were read at {position} of a RAM file")


def copy_ram(source_fd: int, target_fd: int) -> None:
    """The RAM file open as `target_fd`, in which nothing was written, holds what that of `source_fd` does.

    What was never touched stays a hole. The kernel copies: 0.05 s for 100 MiB.
    """
    for start, end in find_extents(source_fd):
        at = os.lseek(target_fd, start, os.SEEK_SET)
        while at < end:
            at += os.sendfile(target_fd, source_fd, at, end - at)


def empty_ram(fd: int) -> None:
    """The RAM file has its size, and nothing is written in it."""
    size = os.fstat(fd).st_size
    os.ftruncate(fd, 0)
    os.ftruncate(fd, size)


def find_extents(fd: int, begin: int = 0, limit: int = sys.maxsize) -> Iterator[tuple[int, int]]:
    """Start and end of each part of the file that holds data, between `begin` and `limit`."""
    end = begin
    while end < limit:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= limit:
            return
        end = min(os.lseek(fd, start, os.SEEK_HOLE), limit)
        yield start, end
