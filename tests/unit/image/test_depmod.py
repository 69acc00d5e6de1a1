"""The index that modprobe reads, byte by byte, and read back by its rules."""

from __future__ import annotations

import struct

from vmfork.image.depmod import encode_index

HEAD = bytes.fromhex("b007f457 00020001")


def test_an_index_of_nothing_has_an_empty_root():
    assert encode_index({}) == HEAD + bytes.fromhex("0000000c")


def test_two_keys_share_what_they_begin_with():
    index = encode_index({"tun": [(1, "x")], "tap": [(0, "y")]})
    ap = b"p\0" + bytes.fromhex("00000001 00000000") + b"y\0"  # below "ta"
    un = b"n\0" + bytes.fromhex("00000001 00000001") + b"x\0"  # below "tu"
    t = b"au" + struct.pack(">21I", 0xC000000C, *[0] * 19, 0xC000000C + len(ap))
    root = b"tt" + struct.pack(">I", 0x20000000 + 12 + len(ap) + len(un))
    where = 12 + len(ap) + len(un) + len(t)
    assert index == HEAD + struct.pack(">I", 0x20000000 + where) + ap + un + t + root


def find(index: bytes, key: str) -> list[str]:
    """What a reader that follows the drawing finds under the key."""
    (offset,) = struct.unpack_from(">I", index, 8)
    rest = key.encode()
    while True:
        at, flags = offset & 0x0FFFFFFF, offset & 0xF0000000
        if flags & 0x80000000:
            end = index.index(b"\0", at)
            if not rest.startswith(index[at:end]):
                return []
            rest, at = rest[end - at :], end + 1
        first, last = 1, 0
        if flags & 0x20000000:
            first, last = index[at], index[at + 1]
            children = struct.unpack_from(f">{last - first + 1}I", index, at + 2)
            at += 2 + 4 * len(children)
        if not rest:
            values = []
            for _ in range(struct.unpack_from(">I", index, at)[0] if flags & 0x40000000 else 0):
                end = index.index(b"\0", at + 8)
                values.append(index[at + 8 : end].decode())
                at = end + 1 - 4
            return values
        if not first <= rest[0] <= last or not children[rest[0] - first]:
            return []
        offset, rest = children[rest[0] - first], rest[1:]


def test_every_key_is_found_and_no_other():
    entries = {"virtio_net": [(2, "n")], "virtio_blk": [(0, "b")], "virtio": [(1, "a"), (0, "z")], "x": [(0, "")]}
    index = encode_index(entries)
    assert {key: find(index, key) for key in entries} == {
        "virtio_net": ["n"],
        "virtio_blk": ["b"],
        "virtio": ["z", "a"],
        "x": [""],
    }
    assert find(index, "virtio_") == find(index, "virtio_nett") == find(index, "y") == []
