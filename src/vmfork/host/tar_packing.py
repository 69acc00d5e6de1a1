"""A tar on a descriptor, as the bytes of a tree (`wire/tree.py`)."""

from __future__ import annotations

import os
import select
import tarfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vmfork.errors import ConfigError
from vmfork.host.compressed import DamagedError, decompressed
from vmfork.host.packing import Made, Parts, encode_content
from vmfork.host.thread import in_thread
from vmfork.wire.tree import MOST_DEPTH, SHARED, Entry, encode_entry, encode_up, is_name

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Self

    from vmfork.host.compressed import Source
    from vmfork.host.packing import Batch
    from vmfork.wire.tree import EntryType

_PIECE_SIZE = 65_536
_NO_TAR = "give a tar, or one that gzip, bzip2 or xz made smaller"
# All that says something of one member: tarfile has that in memory. PATH_MAX is 4,096; a file that has 40,000 holes
# says so in half of this.
_MOST_HEADER = 1024 * 1024
_LARGEST_SIZE = 2**63 - 1


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


M = TypeVar("M", bound=tarfile.TarInfo)


class _Member(tarfile.TarInfo):
    """A header. An invalid one raises `ReadError`: tarfile takes it, and a tar that is cut off, for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # an empty block, which is the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"it ends before its end, or has an invalid header ({error})") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        return _checked(super().frombuf(buf, encoding, errors))

    @classmethod
    def _frombuf(cls, *args: Any, **options: Any) -> Self:
        """What Python 3.13, as Debian 13 has it, calls in place of `frombuf`; 3.11 has no such method."""
        member: Self = super()._frombuf(*args, **options)  # type: ignore[misc]
        return _checked(member)


def _checked(member: M) -> M:
    if member.size < 0:
        raise tarfile.ReadError(f"it has a header that announces {member.size} bytes")
    return member


class _Headers:
    """The stream of a tar while tarfile reads what says something of one member.

    More than `_MOST_HEADER` raises `ReadError`: names, attributes and maps of holes may be as long as a tar says, and a
    small compressed tar may hold long ones.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = _MOST_HEADER
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError(f"what it says of one member takes more than {_MOST_HEADER} bytes")
        data: bytes = self._stream.read(size)
        return data


class _Tar(tarfile.TarFile):
    """A tar whose headers are bounded."""

    def next(self) -> tarfile.TarInfo | None:
        stream: Any = self.fileobj
        self.fileobj = cast(Any, _Headers(stream))
        try:
            return super().next()
        finally:
            self.fileobj = stream


@contextmanager
def _making_sense() -> Iterator[None]:
    """Raises `ReadError` for whatever tarfile raises where a tar makes no sense.

    A map of holes that is cut off is an `IndexError`, an endless time an `OverflowError`, and a thousand headers for
    one name are a `RecursionError` (CPython 3.11 to 3.13).
    """
    try:
        yield
    except (TypeError, IndexError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError("it makes no sense") from error


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
        with _open_tar(self._input) as tar:
            while (member := _next_member(tar)) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps them all, however many come
                *folders, name = _names_of(member.name) or [b""]
                if name:
                    yield from _go_to(where, folders)
                    yield from _pack_member(tar, member, where, name)
        yield from _go_to(where, [])
        yield encode_up(), None


def _open_tar(source: Source) -> tarfile.TarFile:
    with _making_sense():
        return _Tar.open(fileobj=cast(Any, decompressed(source)), mode="r|", bufsize=_PIECE_SIZE, tarinfo=_Member)


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _making_sense():
        member = tar.next()
    if member is not None and not 0 <= member.size <= _LARGEST_SIZE:
        raise tarfile.ReadError(f"{member.name!r} has a size of {member.size} bytes")
    return member


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
        yield from encode_content(_entry("file", name, member, SHARED), _read(tar, member), path, size=member.size)
    else:
        yield b"", Made("other", path)


def _entry(kind: EntryType, name: bytes, member: tarfile.TarInfo, target: bytes = b"") -> Entry:
    return Entry(kind, name, member.mode & 0o7777, _mtime_ns(member), member.uid, member.gid, member.size, target)


def _mtime_ns(member: tarfile.TarInfo) -> int:
    """A float has not all digits of the text that it was read from."""
    whole, _, part = member.pax_headers.get("mtime", "").partition(".")
    if not part.isdigit():
        with _making_sense():
            return int(member.mtime * 1_000_000_000)
    ns = abs(int(whole)) * 1_000_000_000 + int(part[:9].ljust(9, "0"))
    return -ns if whole.startswith("-") else ns


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[tuple[int, bytes]]:
    """The content, without holes where the tar has them: then its pieces lie one behind the other."""
    stream: Any = tar.fileobj
    stream.seek(member.offset_data)
    for at, size in getattr(member, "sparse", None) or [(0, member.size)]:
        if not 0 <= at <= at + size <= _LARGEST_SIZE:
            raise tarfile.ReadError(f"{member.name!r} has {size} bytes at {at}")
        for offset in range(at, at + size, _PIECE_SIZE):
            data = stream.read(min(_PIECE_SIZE, at + size - offset))
            yield offset, data
            if len(data) < min(_PIECE_SIZE, at + size - offset):
                raise tarfile.ReadError("it ends before its end")
