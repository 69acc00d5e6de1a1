"""What happens to files in the guest, as it comes over the line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from vmfork.errors import ProtocolError
from vmfork.wire.frame import RecordParser
from vmfork.wire.message import decode_text, parse_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

FileEventKind: TypeAlias = Literal[
    "created", "changed", "closed", "removed", "moved-away", "moved-here", "attributes", "overflow", "gone"
]

_FIELDS = 4
# A path of Linux, and three short fields.
_LARGEST = 8192
_READY = b"ready"


@dataclass(frozen=True, slots=True)
class FileEvent:
    """Something that happened to a file or folder of the guest.

    `path` is absolute. `closed`: whoever wrote to it closed it. `attributes`: its mode, owner or times are others. Both
    halves of a move have the same `pair`, other events 0; where only one comes, the other lies outside. `overflow`:
    more happened than was asked for in time, and some was not told. `gone`: what was watched is, and nothing follows.
    """

    kind: FileEventKind
    path: str
    is_dir: bool = False
    pair: int = 0


_KINDS = {kind.encode(): cast(FileEventKind, kind) for kind in get_args(FileEventKind)}


class EventParser:
    """Bytes in any pieces become events below `root`. `is_ready`: nothing that happens from now on is missed."""

    def __init__(self, root: str) -> None:
        self.is_ready = False
        self._root = root
        self._below = root.rstrip("/")
        self._parser = RecordParser(_FIELDS, most=_LARGEST)

    def feed(self, data: bytes | bytearray) -> Iterator[FileEvent]:
        """The events that `data` completes. Raises `ProtocolError` for what is none."""
        for kind, path, what, pair in self._parser.feed(data):
            if kind == _READY:
                self.is_ready = True
                continue
            if kind not in _KINDS or b"\0" in path or not self.is_ready:
                raise ProtocolError(f"{kind[:40]!r} of {path[:40]!r} is nothing that happens to files")
            yield FileEvent(_KINDS[kind], self._place(path), what == b"dir", parse_pair(pair))

    def _place(self, path: bytes) -> str:
        return f"{self._below}/{decode_text(path)}" if path else self._root
