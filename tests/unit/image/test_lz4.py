"""The frame is what lz4(1) and the kernel read."""

from __future__ import annotations

import io
import os
import random
import subprocess

import pytest

from vmfork.errors import HostError
from vmfork.image import lz4


def compress(*pieces: bytes) -> bytes:
    file = io.BytesIO()
    with lz4.LegacyWriter(file) as writer:
        for piece in pieces:
            writer.write(piece)
        writer.finish()
    return file.getvalue()


def test_nothing_is_a_bare_magic_number():
    assert compress() == b"\x02\x21\x4c\x18"


def test_a_block_byte_for_byte():
    # One sequence of five literals: token 0x50, then the bytes (lz4: doc/lz4_Block_format.md).
    assert compress(b"hello") == b"\x02\x21\x4c\x18\x06\x00\x00\x00\x50hello"


@pytest.mark.needs("lz4")
def test_blocks_keep_their_order():
    data = random.Random(1).randbytes(1 << 16) * 400 + os.urandom(100)
    packed = compress(data[:5], data[5:])
    assert subprocess.run(["lz4", "-d", "-c"], input=packed, capture_output=True, check=True).stdout == data


def test_without_the_library_the_hint_names_the_package(monkeypatch):
    def refuse(_name):
        raise OSError

    lz4._load.cache_clear()
    monkeypatch.setattr(lz4.ctypes, "CDLL", refuse)
    with pytest.raises(HostError) as caught:
        lz4.check_library()
    assert "apt-get install liblz4-1" in caught.value.hint
    monkeypatch.undo()
    lz4._load.cache_clear()
