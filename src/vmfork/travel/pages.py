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
from typing import TYPE_CHECKING

from vmfork.store.ram_file import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEAD = struct.Struct("<QII")
_CONTENT, _CLEARED = 1, 0
_ZEROS = bytes(PAGE)


def encode(pieces: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """The records of `pieces`, at ascending positions: position, content, and what is there already, as long.

    Pages that are there already are left out.
    """
    out = bytearray()
    for position, data, there in pieces:
        for begin, end, kind in _find_runs(data, there):
            out += _HEAD.pack(position + begin, (end - begin) // PAGE, kind)
            if kind == _CONTENT:
                out += data[begin:end]
    return bytes(out)


def decode(data: bytes, memory_bytes: int) -> Iterator[tuple[int, memoryview | int]]:
    """Position and content of each run of pages, or how many bytes are zeros there.

    Raises `ValueError` for what `encode` does not give of RAM of that size.
    """
    view, at, lowest = memoryview(data), 0, 0
    while at < len(view):
        if len(view) - at < _HEAD.size:
            raise ValueError("a record is cut off")
        position, count, kind = _HEAD.unpack_from(view, at)
        at += _HEAD.size
        size = count * PAGE
        if position % PAGE or position < lowest or count == 0 or position + size > memory_bytes:
            raise ValueError(f"a record has {count} pages at {position}, of RAM of {memory_bytes} bytes")
        lowest = position + size
        if kind == _CLEARED:
            yield position, size
        elif kind != _CONTENT or len(view) - at < size:
            raise ValueError(f"a record of kind {kind} with {count} pages has {len(view) - at} bytes left")
        else:
            yield position, view[at : at + size]
            at += size


def largest(span_bytes: int) -> int:
    """As long as `encode` gets at most for `span_bytes` of RAM: every other page is a record of its own."""
    return span_bytes + span_bytes // PAGE * _HEAD.size


def _find_runs(data: bytes, there: bytes) -> Iterator[tuple[int, int, int]]:
    """Begin, end and kind of each run of pages of one kind that differ from what is there."""
    begin, kind = 0, -1
    for offset in range(0, len(data), PAGE):
        page = data[offset : offset + PAGE]
        found = _kind_of(page) if page != there[offset : offset + PAGE] else -1
        if found != kind:
            if kind >= 0:
                yield begin, offset, kind
            begin, kind = offset, found
    if kind >= 0:
        yield begin, len(data), kind


def _kind_of(page: bytes) -> int:
    return _CLEARED if page == _ZEROS else _CONTENT
