"""A tar on a descriptor, as the bytes of a tree (`wire/tree.py`)."""

from __future__ import annotations

import os
import select
import tarfile
import time
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.host.compressed import DamagedError
from vmfork.host.packing import Made, Parts, encode_content
from vmfork.host.tar_reading import making_sense, next_member, open_tar, read_content
from vmfork.host.thread import in_thread
from vmfork.wire.tree import MOST_DEPTH, SHARED, Entry, encode_entry, encode_up, is_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from vmfork.host.packing import Batch
    from vmfork.wire.tree import EntryType

_NO_TAR = "give a tar, or one that gzip, bzip2, xz or zstd made smaller"


class _Input:
    """A descriptor to read, by a thread that `interrupt` wakes. One that was interrupted is at its end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        for each in (fd, self._wake):
            self._poll.register(each, select.POLLIN)

    def read(self, size: int) -> bytes:
        """All of `size` bytes, less at the end."""
        data = bytearray()
        while len(data) < size:
            if any(fd == self._wake for fd, _ in self._poll.poll()):
                break
            try:
                more = os.read(self._fd, size - len(data))
            except BlockingIOError:  # whoever gave it to us made it non-blocking
                continue
            if not more:
                break
            data += more
        return bytes(data)

    def interrupt(self) -> None:
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """The descriptor is as it was given, and stays open."""
        os.close(self._wake)


class TarPacking:
    """Reads the tar on `fd`, compressed or not, a batch at a time. What is in it goes into a folder that is there.

    A name that begins with `/` counts from that folder on. One with `..` is refused, and so is a file that ends before
    its end. What no tree can have (devices, pipes) is skipped.
    """

    def __init__(self, fd: int) -> None:
        self.shown = "a tar"
        self._input = _Input(fd)
        self._parts = Parts(self._pack())

    async def next_batch(self) -> Batch:
        """The next bytes; none at the end. Raises `ConfigError` for what is no tar."""
        return await in_thread(lambda _: self._next_batch(), interrupt=self._input.interrupt)

    def close(self) -> None:
        """The descriptor stays open, wherever reading it has come to."""
        self._parts.close()
        self._input.close()

    def _next_batch(self) -> Batch:
        try:
            return self._parts.next_batch()
        except (tarfile.TarError, DamagedError, EOFError, ValueError) as error:
            raise ConfigError("tar", "-", f"what came is no whole tar: {error}", hint=_NO_TAR) from error

    def _pack(self) -> Generator[tuple[bytes, Made | None]]:
        where: list[bytes] = []
        yield encode_entry(_folder(b"root")), Made("dir", ".")
        with open_tar(self._input) as tar:
            while (member := next_member(tar)) is not None:
                *folders, name = _names_of(member.name) or [b""]
                if name:
                    yield from _go_to(where, folders)
                    yield from _pack_member(tar, member, where, name)
        yield from _go_to(where, [])
        yield encode_up(), None


def _names_of(path: str) -> list[bytes]:
    """The folders on the way, and the name; nothing for the root itself."""
    names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
    if not all(map(is_name, names)) or len(names) >= MOST_DEPTH:
        raise ConfigError("tar", path, f"the tar has {path!r}, which is no name inside a folder", hint=_NO_TAR)
    return names


def _go_to(where: list[bytes], folders: list[bytes]) -> Iterator[tuple[bytes, Made | None]]:
    """Leaves and enters folders until we are in `folders`. One that no member of the tar made has mode 0755."""
    while where != folders[: len(where)]:
        where.pop()
        yield encode_up(), None
    for name in folders[len(where) :]:
        where.append(name)
        yield encode_entry(_folder(name)), Made("dir", os.fsdecode(b"/".join(where)))


def _folder(name: bytes) -> Entry:
    return Entry("dir", name, 0o755, time.time_ns(), 0, 0, 0)


def _pack_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, where: list[bytes], name: bytes
) -> Iterator[tuple[bytes, Made | None]]:
    path = os.fsdecode(b"/".join([*where, name]))
    if member.isdir():
        yield encode_entry(_entry("dir", name, member)), Made("dir", path)
        where.append(name)
    elif member.issym():
        yield encode_entry(_entry("link", name, member, os.fsencode(member.linkname))), Made("link", path)
    elif member.islnk():
        first = b"/".join(_names_of(member.linkname))
        yield encode_entry(_entry("hard", name, member, first)), Made("hard", path)
    elif member.isfile():
        yield from encode_content(
            _entry("file", name, member, SHARED), read_content(tar, member), path, size=member.size
        )
    else:
        yield b"", Made("other", path)


def _entry(kind: EntryType, name: bytes, member: tarfile.TarInfo, target: bytes = b"") -> Entry:
    return Entry(kind, name, member.mode & 0o7777, _mtime_ns(member), member.uid, member.gid, member.size, target)


def _mtime_ns(member: tarfile.TarInfo) -> int:
    """A float has not all digits of the text that it was read from."""
    whole, _, part = member.pax_headers.get("mtime", "").partition(".")
    if not part.isdigit():
        with making_sense():
            return int(member.mtime * 1_000_000_000)
    ns = abs(int(whole)) * 1_000_000_000 + int(part[:9].ljust(9, "0"))
    return -ns if whole.startswith("-") else ns
