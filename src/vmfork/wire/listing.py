"""The names in a folder, or in all below it, as their bytes come: nothing but the entries themselves is kept."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from vmfork.errors import ProtocolError
from vmfork.wire.frame import RecordParser
from vmfork.wire.message import DirEntry, decode_text, parse_count, parse_entry
from vmfork.wire.tree import LARGEST_ENTRY, Entry, TreeParser, Up

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIELDS = 5
# Measured with CPython 3.11, beside the name: the entry, its numbers as they are allotted, its places in three lists.
_COST = 240


class NamesParser(Protocol):
    """Bytes in any pieces become entries. `check_end` is given the answer that comes behind them."""

    def feed(self, data: bytes | bytearray) -> Iterator[DirEntry]: ...

    def check_end(self, answer: bytes) -> None: ...


class FolderNames:
    """What LIST sends: five fields for each entry."""

    def __init__(self) -> None:
        self._parser = RecordParser(_FIELDS, most=LARGEST_ENTRY)
        self._count = 0

    def feed(self, data: bytes | bytearray) -> Iterator[DirEntry]:
        """The entries that `data` completes."""
        for fields in self._parser.feed(data):
            self._count += 1
            yield parse_entry(fields)

    def check_end(self, answer: bytes) -> None:
        """Raises `ProtocolError` unless exactly as many came as the agent sent."""
        sent = parse_count(answer)
        if not self._parser.is_idle or self._count != sent:
            raise ProtocolError(f"the agent sent {sent} entries, {self._count} came")


class TreeNames:
    """What GET sends with `names`: entries are called by their paths below the root, which is a folder."""

    def __init__(self) -> None:
        self._parser = TreeParser(names_only=True)
        self._folders: list[bytes] = []

    def feed(self, data: bytes | bytearray) -> Iterator[DirEntry]:
        """The entries that `data` completes."""
        for part in self._parser.feed(data):
            if isinstance(part, Up):
                self._folders.pop()
            elif isinstance(part, Entry):
                yield from self._enter(part)

    def check_end(self, answer: bytes) -> None:  # noqa: ARG002, RUF100 - the tree tells its end itself
        """Raises `ProtocolError` unless the tree is whole."""
        if not self._parser.has_ended:
            raise ProtocolError("a list of names ends before its end")

    def _enter(self, entry: Entry) -> Iterator[DirEntry]:
        is_root = not self._folders
        if is_root and entry.type != "dir":
            raise ProtocolError("a list of names that is not a folder's")
        path = b"" if is_root else self._folders[-1] + entry.name
        if not is_root:
            kind = "file" if entry.type == "hard" else entry.type
            yield DirEntry(decode_text(path), kind, entry.mode, entry.size, entry.mtime_ns)
        if entry.type == "dir":
            self._folders.append(b"" if is_root else path + b"/")


class Listing:
    """Entries, as long as they take no more than `max_bytes` of memory here."""

    def __init__(self, parser: NamesParser, max_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        self._parser = parser
        self._size_bytes = 0
        self._entries: list[DirEntry] = []

    def add(self, data: bytes | bytearray) -> bool:
        """Whether there is room for what `data` completes; where there is not, some of it was left out."""
        for entry in self._parser.feed(data):
            self._size_bytes += sys.getsizeof(entry.name) + _COST
            if self.max_bytes is not None and self._size_bytes > self.max_bytes:
                return False
            self._entries.append(entry)
        return True

    def check_end(self, answer: bytes) -> None:
        """Raises `ProtocolError` when something is missing."""
        self._parser.check_end(answer)

    def __len__(self) -> int:
        return len(self._entries)

    def sort(self) -> tuple[DirEntry, ...]:
        """The entries by name."""
        self._entries.sort(key=lambda entry: entry.name)
        return tuple(self._entries)
