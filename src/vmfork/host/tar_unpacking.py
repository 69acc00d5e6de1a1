"""The bytes of a tree (`wire/tree.py`), as a tar on a descriptor."""

from __future__ import annotations

import os
import stat
import tarfile
from typing import TYPE_CHECKING

from vmfork.copied import Tally
from vmfork.errors import HostError, LimitExceeded, ProtocolError
from vmfork.host.unpacking import check_inside
from vmfork.host.wait import write_all
from vmfork.wire.tree import SHARED, Entry, FileEnd, Piece, TreeParser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.copied import Copied
    from vmfork.wire.tree import Part

_PIECE_SIZE = 65_536
_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_PIECE_SIZE)
# A file of /proc tells no size, and a tar has it before the content.
_MOST_UNSIZED = 1024 * 1024
_SET_ID = stat.S_ISUID | stat.S_ISGID


class TarUnpacking:
    """Writes the tree that comes as a tar to `fd`, each name below `prefix`.

    With `archive` owners and all of the mode are the guest's; else all is ours, and nothing has set-user-ID. A link
    that leads out of the tree is refused, unless `outside_links`. A hole is zeros; a file that has become shorter ends
    with zeros. A tar of more than `max_bytes` is a `LimitExceeded` that names `operation`.
    """

    def __init__(
        self,
        fd: int,
        *,
        prefix: str,
        operation: str,
        archive: bool = False,
        outside_links: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        self.operation = operation
        self._fd = fd
        self._prefix = os.fsencode(prefix)
        self._archive = archive
        self._outside_links = outside_links
        self._max_bytes = max_bytes
        self._parser = TreeParser()
        self._tally = Tally()
        self._path: list[bytes] = []
        self._depth = 0
        self._file: Entry | None = None
        self._unsized: bytearray | None = None
        self._written = 0
        self._shared: set[bytes] = set()
        self._entries = self._size_bytes = self._tar_bytes = 0

    @property
    def copied(self) -> Copied:
        """What was written so far."""
        return self._tally.copied

    @property
    def at(self) -> str:
        """The name that came last."""
        return os.fsdecode(b"/".join(self._path)) or "."

    async def open(self) -> None:
        """Nothing to make ready."""

    async def take(self, data: bytes | bytearray) -> None:
        """What `data` completes was written."""
        for part in self._parser.feed(data):
            for piece in self._make(part):
                await write_all(self._fd, piece)

    async def finish(self, entries: int, size_bytes: int) -> None:
        """The tar is whole. Raises `ProtocolError` when the tree is not, or not what the guest says that it sent."""
        if not self._parser.has_ended or (entries, size_bytes) != (self._entries, self._size_bytes):
            raise ProtocolError(f"the guest sent {entries} names, {self._entries} came")
        await write_all(self._fd, bytes(2 * _BLOCK))

    def close(self) -> None:
        """The descriptor stays open."""

    def _make(self, part: Part) -> Iterator[bytes | memoryview]:
        match part:
            case Piece():
                yield from self._write(part)
            case FileEnd():
                yield from self._end_file(part.size)
            case Entry():
                yield from self._make_entry(part)
            case _:
                self._depth -= 1

    def _make_entry(self, entry: Entry) -> Iterator[bytes | memoryview]:
        self._entries += 1
        inside = max(0, self._depth - 1)
        del self._path[inside:]
        if self._depth:
            self._path.append(entry.name)
        if entry.type == "other":
            self._tally.skip(self.at)
        elif entry.type == "file":
            self._file, self._written = entry, 0
            self._unsized = None if entry.size else bytearray()
            if entry.size:
                yield self._head(entry, entry.size)
        else:
            self._check_target(entry, inside)
            yield self._head(entry, 0)
            self._tally.add(entry.type, self.at)
            self._depth += entry.type == "dir"

    def _check_target(self, entry: Entry, depth: int) -> None:
        if entry.type == "hard" and entry.target not in self._shared:
            raise ProtocolError(f"{self.at!r} is to be another name of {entry.target!r}, which did not come")
        if entry.type == "link" and not self._outside_links:
            check_inside(entry.target, depth, self.at)

    def _write(self, piece: Piece) -> Iterator[bytes | memoryview]:
        assert self._file is not None
        self._size_bytes += len(piece.data)
        if self._unsized is not None:
            if piece.offset + len(piece.data) > _MOST_UNSIZED:
                raise HostError(f"{self.at!r} tells no size, and has much", hint="copy it without a tar")
            self._unsized += bytes(piece.offset - len(self._unsized)) + piece.data
            return
        if piece.offset + len(piece.data) > self._file.size:
            raise ProtocolError(f"{self.at!r} is longer than the guest said")
        yield from _zeros(piece.offset - self._written)
        yield piece.data
        self._written = piece.offset + len(piece.data)

    def _end_file(self, size: int) -> Iterator[bytes | memoryview]:
        assert self._file is not None
        if self._unsized is not None:
            content = bytes(self._unsized[:size])
            yield self._head(self._file, len(content))
            yield content
            self._written = len(content)
        else:
            yield from _zeros(self._file.size - self._written)
            self._written = self._file.size
        yield bytes(-self._written % _BLOCK)
        if self._file.target == SHARED:
            self._shared.add(b"/".join(self._path))
        self._tally.add("file", self.at, self._written)
        self._file = None

    def _head(self, entry: Entry, size: int) -> bytes:
        info = tarfile.TarInfo(self._name_of(self._path))
        info.type = _TYPES[entry.type]
        info.size = size
        info.mode = entry.mode if self._archive else entry.mode & ~_SET_ID
        info.uid, info.gid = (entry.uid, entry.gid) if self._archive else (os.geteuid(), os.getegid())
        if entry.type == "link":
            info.linkname = os.fsdecode(entry.target)
        elif entry.type == "hard":
            info.linkname = self._name_of(entry.target.split(b"/"))
        info.mtime = entry.mtime_ns // 1_000_000_000
        head = _encode_time(entry.mtime_ns) + info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        self._tar_bytes += len(head) + size
        if self._max_bytes is not None and self._tar_bytes > self._max_bytes:
            raise LimitExceeded(self.operation, self._max_bytes, hint="allow more (max_bytes); a hole counts too")
        return head

    def _name_of(self, path: list[bytes]) -> str:
        return os.fsdecode(b"/".join([self._prefix, *path]))


_TYPES = {"dir": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}


def _encode_time(time_ns: int) -> bytes:
    """A record of pax (POSIX.1-2001) for the member that follows, where its own header cannot tell the time.

    It tells that alone. In Python's own, a name that is no text comes with a word that GNU tar does not know.
    """
    whole, ns = divmod(time_ns, 1_000_000_000)
    if not ns or whole < 0:
        return b""
    record = b" mtime=%d.%09d\n" % (whole, ns)
    record = b"%d" % (len(record) + 2) + record  # its length, of two digits, counts itself
    head = tarfile.TarInfo("pax")
    head.type, head.size = tarfile.XHDTYPE, len(record)
    return head.tobuf(tarfile.USTAR_FORMAT) + record.ljust(_BLOCK, b"\0")


def _zeros(count: int) -> Iterator[bytes | memoryview]:
    while count > 0:
        yield _ZEROS[:count]
        count -= _PIECE_SIZE
