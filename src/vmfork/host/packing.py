"""Files of the host as the bytes of a tree (`wire/tree.py`)."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vmfork.errors import ConfigError
from vmfork.host.thread import in_thread
from vmfork.wire.tree import (
    LARGEST_ENTRY,
    MOST_DEPTH,
    SHARED,
    Entry,
    encode_entry,
    encode_piece,
    encode_up,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from typing import Self

    from vmfork.wire.tree import EntryType

    LeavesOut = Callable[[str, bool], bool]

_PIECE_SIZE = 65_536
_BATCH_SIZE = 4 * _PIECE_SIZE
# The files of /proc tell no size: they are read to their end.
_NO_SIZE = 2**62
# A pipe or a device that took the place of a file meanwhile is not waited for.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Made(NamedTuple):
    """One name of the tree, which is in its place once its bytes were taken. `skipped`: it has none."""

    kind: EntryType
    path: str
    size_bytes: int = 0


@dataclass(slots=True)
class Batch:
    """Some bytes of the tree, and what each name ends with: how far into all of it."""

    data: bytearray = field(default_factory=bytearray)
    made: list[tuple[int, Made]] = field(default_factory=list)

    @property
    def has_any(self) -> bool:
        """It is not the end."""
        return bool(self.data or self.made)


def check_source(path: str) -> int:
    """How many bytes of content are at `path`, if it is a file; 0 for a folder. A link is followed.

    Raises `ConfigError` when it is neither.
    """
    try:
        st = os.stat(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("local", path, f"{path!r} cannot be copied: {why}", hint="give what is here") from error
    if stat.S_ISREG(st.st_mode):
        return _content_size(st)
    if stat.S_ISDIR(st.st_mode):
        return 0
    raise ConfigError("local", path, f"{path!r} is neither a file nor a folder", hint="give one that is")


def base_name(path: str) -> str:
    """What is at `path` is called so in its folder; `root` where that is the root."""
    return os.path.basename(os.path.abspath(path)) or "root"


def measure(path: str) -> int:
    """How many bytes of content are at and below `path`, about: it is for a progress bar."""
    total = check_source(path)
    for folder, _, names in os.walk(path, onerror=None):
        for name in names:
            try:
                st = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            total += _content_size(st) if stat.S_ISREG(st.st_mode) else 0
    return total


def _content_size(st: os.stat_result) -> int:
    return min(st.st_size, st.st_blocks * 512)


def _has_holes(st: os.stat_result) -> bool:
    return st.st_blocks * 512 < st.st_size


class Parts:
    """Gathers parts of a tree, each with the name that it completes, into batches."""

    def __init__(self, parts: Generator[tuple[bytes, Made | None]]) -> None:
        self._parts = parts
        self._end = 0

    def next_batch(self) -> Batch:
        """The next bytes; none at the end."""
        batch = Batch()
        for data, made in self._parts:
            batch.data += data
            self._end += len(data)
            if made is not None:
                batch.made.append((self._end, made))
            if len(batch.data) >= _BATCH_SIZE:
                break
        return batch

    def close(self) -> None:
        """What gave the parts holds nothing open."""
        self._parts.close()


class Packing:
    """Reads the file or folder at `path`, which `check_source` was asked about, a batch at a time.

    A link at `path` is followed, no other. What is gone when it is come to is left out. A file that shrinks meanwhile
    ends earlier, one that grows where it did at first. `leaves_out` is asked of each name in and below a folder, by its
    path from there on, and whether it is a folder.
    """

    def __init__(self, path: str, *, leaves_out: LeavesOut | None = None) -> None:
        self.shown = path
        self._leaves_out = leaves_out
        self._name = os.fsencode(base_name(path))
        self._path = os.path.realpath(os.fsencode(path))
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._parts = Parts(self._pack_root())

    @classmethod
    def of_link(cls, path: str, name: str) -> Self:
        """The link at `path` itself, called `name`, in a folder that is there."""
        packing = cls(path)
        packing._parts = Parts(_pack_link(path, os.fsencode(name)))
        return packing

    async def next_batch(self) -> Batch:
        """The next bytes; none at the end."""
        return await in_thread(lambda _: self._parts.next_batch())

    def close(self) -> None:
        """No file is open."""
        self._parts.close()

    def _pack_root(self) -> Generator[tuple[bytes, Made | None]]:
        st = os.stat(self._path)
        if stat.S_ISDIR(st.st_mode):
            yield from self._pack_folder(self._path, b"", _entry("dir", self._name, st), 1)
        else:
            yield from self._pack_file(self._path, self._name, self._name)

    def _pack_folder(self, path: bytes, inside: bytes, entry: Entry, depth: int) -> Iterator[tuple[bytes, Made | None]]:
        if depth > MOST_DEPTH:
            where = os.fsdecode(path)
            raise ConfigError("local", where, f"{where!r} is more than {MOST_DEPTH} folders deep")
        yield encode_entry(entry), Made("dir", os.fsdecode(inside) or ".")
        with os.scandir(path) as scan:
            found = sorted(scan, key=lambda entry: entry.name)
        for below in found:
            if self._leaves_out is not None and self._is_left_out(below, inside):
                continue
            # What the folder itself says of a name saves a look at it.
            if below.is_file(follow_symlinks=False):
                yield from self._pack_file(below.path, os.path.join(inside, below.name), below.name)
            else:
                yield from self._pack_other(below.path, os.path.join(inside, below.name), below.name, depth)
        yield encode_up(), None

    def _is_left_out(self, below: os.DirEntry[bytes], inside: bytes) -> bool:
        assert self._leaves_out is not None
        path = os.fsdecode(os.path.join(inside, below.name))
        return self._leaves_out(path, below.is_dir(follow_symlinks=False))

    def _pack_other(self, path: bytes, inside: bytes, name: bytes, depth: int) -> Iterator[tuple[bytes, Made | None]]:
        try:
            st = os.lstat(path)
        except FileNotFoundError:
            return
        if stat.S_ISREG(st.st_mode):
            yield from self._pack_file(path, inside, name)
        elif stat.S_ISDIR(st.st_mode):
            yield from self._pack_folder(path, inside, _entry("dir", name, st), depth + 1)
        elif stat.S_ISLNK(st.st_mode):
            yield encode_entry(_entry("link", name, st, os.readlink(path))), Made("link", os.fsdecode(inside))
        else:
            yield b"", Made("other", os.fsdecode(inside))

    def _pack_file(self, path: bytes, inside: bytes, name: bytes) -> Iterator[tuple[bytes, Made | None]]:
        try:
            fd = os.open(path, _READ)
        except FileNotFoundError:
            return
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                yield b"", Made("other", os.fsdecode(inside))
            elif (first := self._first_name(st, inside)) is not None:
                yield encode_entry(_entry("hard", name, st, first)), Made("hard", os.fsdecode(inside))
            else:
                entry = _entry("file", name, st, SHARED if st.st_nlink > 1 else b"")
                pieces = _read(fd, entry.size, has_holes=_has_holes(st))
                size = entry.size if _has_holes(st) else None
                yield from encode_content(entry, pieces, os.fsdecode(inside), size=size)
        finally:
            os.close(fd)

    def _first_name(self, st: os.stat_result, inside: bytes) -> bytes | None:
        """The name that the file came under before; else it comes under this one now."""
        if st.st_nlink < 2 or len(inside) > LARGEST_ENTRY // 2 - 512:
            return None
        first = self._first_names.setdefault((st.st_dev, st.st_ino), inside)
        return None if first is inside else first


def _pack_link(path: str, name: bytes) -> Generator[tuple[bytes, Made | None]]:
    st = os.lstat(path)
    link = _entry("link", name, st, os.fsencode(os.readlink(path)))
    yield encode_entry(_entry("dir", b"root", st)), Made("dir", ".")
    yield encode_entry(link) + encode_up(), Made("link", os.fsdecode(name))


def _entry(kind: EntryType, name: bytes, st: os.stat_result, target: bytes = b"") -> Entry:
    return Entry(kind, name, stat.S_IMODE(st.st_mode), st.st_mtime_ns, st.st_uid, st.st_gid, st.st_size, target)


def encode_content(
    entry: Entry, pieces: Iterable[tuple[int, bytes]], path: str, *, size: int | None
) -> Iterator[tuple[bytes, Made | None]]:
    """The entry of a file, its bytes without its holes, its end: at `size`, or where the last piece ends."""
    head, sent, at = encode_entry(entry), 0, 0
    for offset, data in pieces:
        yield head + encode_piece(offset, data), None
        head, sent, at = b"", sent + len(data), offset + len(data)
    yield head + encode_piece(at if size is None else size, b""), Made("file", path, sent)


def _read(fd: int, size: int, *, has_holes: bool) -> Iterator[tuple[int, bytes]]:
    for start, end in _extents(fd, size) if has_holes else ((0, size or _NO_SIZE),):
        at = start
        while at < end and (data := os.pread(fd, min(end - at, _PIECE_SIZE), at)):
            yield at, data
            at += len(data)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has content: SEEK_DATA and SEEK_HOLE, lseek(2)."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(at, size)
