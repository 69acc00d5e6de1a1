"""The pages of a part of RAM as one piece of bytes, and back. Pure.

```
u64 position     bytes from the start of the RAM, a multiple of 4096     all numbers little-endian
u32 count        pages, 1 or more
u32 kind         1: their content follows     0: they are zeros, and nothing follows
...              the next, at a higher position
```
What no record covers stays as it was: zeros at first, or what a lower layer left.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vmfork.store.ram_file import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_HEAD = struct.Struct("<QII")
_CONTENT, _CLEARED = 1, 0
_SAME = -1  # no record's: the page is there already
_ZEROS = bytes(PAGE)
# So much is cleared at a time, however much a record says.
_CLEAR = memoryview(bytes(64 * PAGE))


class Piece(NamedTuple):
    """Pages from `position` on, of `size` bytes in all, which `fill` reads into what it is given.

    `there` is what is there already, as long; `None`: zeros.
    """

    position: int
    size: int
    fill: Callable[[memoryview], None]
    there: bytes | None


def encode(pieces: Iterable[Piece], into: bytearray) -> memoryview:
    """The records of `pieces`, at ascending positions. Pages that are there already are left out.

    The records are the beginning of `into`, which has room for `largest` of all the pieces. Pages are read to where
    they belong if nothing is left out; what is behind something that is moves down.
    """
    out, size = memoryview(into), 0
    for piece in pieces:
        start = size + _HEAD.size
        piece.fill(out[start : start + piece.size])
        for begin, end, kind in _find_runs(into, start, piece.size, piece.there):
            _HEAD.pack_into(out, size, piece.position + begin, (end - begin) // PAGE, kind)
            size += _HEAD.size
            if kind == _CONTENT:
                if size < start + begin:
                    out[size : size + end - begin] = out[start + begin : start + end]
                size += end - begin
    return out[:size]


def decode(pieces: Iterable[bytes], memory_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Position and content of all that records say, in ascending order; of no more at once than a piece has.

    `pieces` are the records, cut anywhere. Raises `ValueError` when it comes to what `encode` does not give of RAM of
    that size.
    """
    rest, position, left = b"", 0, 0
    for piece in pieces:
        view, at = memoryview(rest + piece if rest else piece), 0
        while at < len(view):
            if left:
                size = min(left, len(view) - at)
                yield position, view[at : at + size]
                at, position, left = at + size, position + size, left - size
                continue
            if len(view) - at < _HEAD.size:
                break
            begin, end, kind = _read_head(view, at, position, memory_bytes)
            at += _HEAD.size
            if kind == _CONTENT:
                position, left = begin, end - begin
            else:
                position = end
                yield from ((each, _CLEAR[: end - each]) for each in range(begin, end, len(_CLEAR)))
        rest = bytes(view[at:])
    if left:
        raise ValueError(f"a record is cut off: {left} bytes of its pages are missing")
    if rest:
        raise ValueError("a record is cut off")


def _read_head(view: memoryview, at: int, lowest: int, memory_bytes: int) -> tuple[int, int, int]:
    """Begin, end and kind of the pages of the record there."""
    begin, count, kind = _HEAD.unpack_from(view, at)
    end = begin + count * PAGE
    if begin % PAGE or begin < lowest or count == 0 or end > memory_bytes:
        raise ValueError(f"a record has {count} pages at {begin}, of RAM of {memory_bytes} bytes")
    if kind not in (_CONTENT, _CLEARED):
        raise ValueError(f"a record of {count} pages is of kind {kind}")
    return begin, end, kind


def largest(span_bytes: int) -> int:
    """As long as `encode` gets at most for `span_bytes` of RAM: every other page is a record of its own."""
    return span_bytes + span_bytes // PAGE * _HEAD.size


def _find_runs(data: bytearray, start: int, size: int, there: bytes | None) -> Iterator[tuple[int, int, int]]:
    """Begin, end and kind of each run of pages of one kind that differ from what is there, from `start` on.

    When it gives a run nobody looks at that any more, nor before it.
    """
    begin, kind = 0, _SAME
    for offset in range(0, size, PAGE):
        # `startswith` compares where the page lies; a slice would be a copy.
        found = _CLEARED if data.startswith(_ZEROS, start + offset) else _CONTENT
        if there is None:
            found = found or _SAME
        elif data.startswith(there[offset : offset + PAGE], start + offset):
            found = _SAME
        if found != kind:
            if kind != _SAME:
                yield begin, offset, kind
            begin, kind = offset, found
    if kind != _SAME:
        yield begin, size, kind
