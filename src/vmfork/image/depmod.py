"""The index in which modprobe(8) looks modules up: what depmod(8) would write (kmod: libkmod/libkmod-index.c).

A tree of keys, each node after its children; an offset is 28 bits of place and three flags that say what is there.

```
u32 0xB007F457   u32 0x00020001   u32 offset of the root                          all big-endian
node:   [0x8 prefix NUL]   [0x2 first u8  last u8  u32 offset of each child, 0 for none]   [0x4 u32 count, values]
value:  u32 priority   text NUL
```
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_HEAD = struct.Struct(">III")
_MAGIC = 0xB007F457
_VERSION = 0x00020001
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000


def encode_index(entries: Mapping[str, Sequence[tuple[int, str]]]) -> bytes:
    """The file that leads from each key to its values, which are a priority and a text each; lower comes first."""
    nodes = bytearray(_HEAD.size)
    keys = {key.encode(): sorted(values) for key, values in entries.items()}
    _HEAD.pack_into(nodes, 0, _MAGIC, _VERSION, _add_node(nodes, keys, root=True))
    return bytes(nodes)


def _find_prefix(keys: Iterable[bytes]) -> bytes:
    first, last = min(keys), max(keys)
    length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _add_node(nodes: bytearray, keys: Mapping[bytes, list[tuple[int, str]]], *, root: bool = False) -> int:
    """The node of `keys` is written, without the part of them that leads to it. Gives its offset."""
    prefix = b"" if root else _find_prefix(keys)
    rest = {key[len(prefix) :]: values for key, values in keys.items()}
    heads = sorted({key[0] for key in rest if key})
    children = {
        head: _add_node(nodes, {key[1:]: values for key, values in rest.items() if key[:1] == bytes((head,))})
        for head in heads
    }
    offset = len(nodes)
    if prefix:
        nodes += prefix + b"\0"
        offset |= _PREFIX
    if children:
        row = range(heads[0], heads[-1] + 1)
        nodes += bytes((heads[0], heads[-1])) + struct.pack(f">{len(row)}I", *(children.get(head, 0) for head in row))
        offset |= _CHILDREN
    if b"" in rest:
        nodes += struct.pack(">I", len(rest[b""]))
        nodes += b"".join(struct.pack(">I", priority) + text.encode() + b"\0" for priority, text in rest[b""])
        offset |= _VALUES
    return offset
