"""The entries of a tree of files: bytes on the line and what they say, without any input or output."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast, get_args

from vmfork.errors import ProtocolError
from vmfork.wire.frame import decode_fields, encode_fields
from vmfork.wire.message import parse_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.wire.message import FileStat

EntryType = Literal["file", "dir", "link", "hard", "other"]

# As `guest/entry.h` has them. A path is one of Linux, so a tree is no deeper than its own programs can reach.
LARGEST_ENTRY = 8192
MOST_DEPTH = 256
LONGEST_PATH = 4095
SHARED = b"shared"

_FIELDS = 8
_LONGEST_NAME = 255
_LENGTH = struct.Struct(">I")
_PIECE = struct.Struct(">QI")
_LARGEST_SIZE = 2**63 - 1


class Entry(NamedTuple):
    """One name in a tree.

    `target` is where a link leads; of a `hard` one, the first name of the file, from the root on; `shared`, of a file
    that has more names.
    """

    type: EntryType
    name: bytes
    mode: int
    mtime_ns: int
    uid: int
    gid: int
    size: int
    target: bytes = b""


class Up(NamedTuple):
    """The folder has no more entries."""


class Piece(NamedTuple):
    """Bytes of the last file. They are lent, until the next part."""

    offset: int
    data: bytes | memoryview


class FileEnd(NamedTuple):
    """The last file is whole."""

    size: int


Part: TypeAlias = Entry | Up | Piece | FileEnd


def is_name(name: bytes) -> bool:
    """Whether it can be the name of a file in a folder, and of nothing else."""
    return 0 < len(name) <= _LONGEST_NAME and name not in (b".", b"..") and b"/" not in name and b"\0" not in name


def encode_entry(entry: Entry) -> bytes:
    """The entry as it goes over the line."""
    numbers = (b"%o" % entry.mode, *(b"%d" % number for number in entry[3:7]))
    fields = encode_fields(entry.type.encode(), entry.name, *numbers, entry.target)
    return _LENGTH.pack(len(fields)) + fields


def encode_up() -> bytes:
    """The end of a folder."""
    fields = encode_fields(b"up")
    return _LENGTH.pack(len(fields)) + fields


def encode_link_alone(name: bytes, told: FileStat) -> bytes:
    """A tree of a folder with nothing in it but a link, which is called `name`."""
    numbers = told.mode, told.mtime_ns, told.uid, told.gid, told.size
    link = Entry("link", name, *numbers, os.fsencode(told.target))
    return encode_entry(Entry("dir", b"root", *numbers)) + encode_entry(link) + encode_up()


def encode_piece(offset: int, data: bytes) -> bytes:
    """Bytes of a file; without any, its end."""
    return _PIECE.pack(offset, len(data)) + data


def _decode_entry(data: bytes) -> Entry | Up:
    fields = decode_fields(data)
    if fields == (b"up",):
        return Up()
    if len(fields) != _FIELDS:
        raise ProtocolError(f"an entry of a tree has {_FIELDS} fields, this one {len(fields)}")
    kind, name, mode, mtime_ns, uid, gid, size, target = fields
    if kind.decode(errors="replace") not in get_args(EntryType):
        raise ProtocolError(f"a tree has no entries of type {kind!r}")
    if not is_name(name):
        raise ProtocolError(f"{name!r} is no name of a file in a folder")
    if b"\0" in target or len(target) > LONGEST_PATH:
        raise ProtocolError(f"{name!r} leads to what is no path")
    numbers = (
        parse_number(mode, "mode"),
        parse_number(mtime_ns, "time"),
        parse_number(uid, "owner"),
        parse_number(gid, "owner"),
        parse_number(size, "size"),
    )
    return Entry(cast(EntryType, kind.decode()), name, *numbers, target)


class TreeParser:
    """Bytes in any pieces become the parts of one tree, in their order.

    Holds no more than an entry. What comes of a file's content is given on at once, however large its piece. Raises
    `ProtocolError` for what is no tree. `has_ended`: the root is whole.
    """

    def __init__(self, *, names_only: bool = False) -> None:
        self.has_ended = False
        self._names_only = names_only
        self._held = bytearray()
        self._depth = 0
        self._written_to: int | None = None  # of the file that comes
        self._at = self._left = 0  # of the piece that comes

    def feed(self, data: bytes | bytearray) -> Iterator[Part]:
        """The parts that `data` completes."""
        rest = memoryview(data)
        while rest:
            if self._left and not self._held:  # large content is not moved about
                part = Piece(self._at, rest[: self._left])
                self._note_content(part)
                rest = rest[len(part.data) :]
                yield part
                continue
            self._held += rest[:LARGEST_ENTRY]
            rest = rest[LARGEST_ENTRY:]
            while (taken := self._take()) is not None:
                yield taken

    def _take(self) -> Part | None:
        if self._left:
            return self._take_content()
        return self._take_entry() if self._written_to is None else self._take_piece()

    def _cut(self, size: int) -> bytes:
        data = bytes(memoryview(self._held)[:size])
        del self._held[:size]
        return data

    def _take_content(self) -> Piece | None:
        data = self._cut(min(self._left, len(self._held)))
        if not data:
            return None
        piece = Piece(self._at, data)
        self._note_content(piece)
        return piece

    def _note_content(self, piece: Piece) -> None:
        self._at += len(piece.data)
        self._left -= len(piece.data)
        self._written_to = self._at

    def _take_piece(self) -> Part | None:
        if len(self._held) < _PIECE.size:
            return None
        offset, length = _PIECE.unpack(self._cut(_PIECE.size))
        assert self._written_to is not None
        if not self._written_to <= offset <= _LARGEST_SIZE - length:
            raise ProtocolError(f"a piece of a file is at {offset}, behind what came of it")
        if length:
            self._at, self._left = offset, length
            return self._take_content()
        self._written_to = None
        self.has_ended = self._depth == 0
        return FileEnd(offset)

    def _take_entry(self) -> Entry | Up | None:
        if len(self._held) < _LENGTH.size:
            return None
        if self.has_ended:
            raise ProtocolError("something comes behind the end of the tree")
        (length,) = _LENGTH.unpack_from(self._held)
        if length > LARGEST_ENTRY:
            raise ProtocolError(f"an entry of {length} bytes is announced, at most {LARGEST_ENTRY} are allowed")
        if len(self._held) < _LENGTH.size + length:
            return None
        entry = _decode_entry(self._cut(_LENGTH.size + length)[_LENGTH.size :])
        self._follow(entry)
        return entry

    def _follow(self, entry: Entry | Up) -> None:
        if isinstance(entry, Up):
            if self._depth == 0:
                raise ProtocolError("the end of a folder comes without a folder")
            self._depth -= 1
        elif entry.type == "dir":
            self._depth += 1
        elif entry.type == "file" and not self._names_only:
            self._written_to = 0
            return
        if self._depth > MOST_DEPTH:
            raise ProtocolError(f"a tree is {self._depth} folders deep, at most {MOST_DEPTH} are allowed")
        self.has_ended = self._depth == 0
