"""Streams that zstd made smaller, read piece by piece."""

from __future__ import annotations

import ctypes
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.host.compressed import DamagedError, decompressed
from vmfork.host.zstd import ZstdError, ZstdFile


def compress(data: bytes) -> bytes:
    library = ctypes.CDLL("libzstd.so.1")
    library.ZSTD_compressBound.restype = library.ZSTD_compress.restype = ctypes.c_size_t
    room = ctypes.create_string_buffer(library.ZSTD_compressBound(ctypes.c_size_t(len(data))))
    size = library.ZSTD_compress(room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(len(data)), 1)
    return room.raw[:size]


def read_all(source: ZstdFile, piece: int) -> bytes:
    found = bytearray()
    while data := source.read(piece):
        assert len(data) <= piece
        found += data
    return bytes(found)


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=4), st.integers(1, 70_000))
def test_what_zstd_made_smaller_is_as_it_was_whatever_is_asked_for_at_a_time(frames, piece):
    packed = b"".join(compress(frame) for frame in frames)
    assert read_all(ZstdFile(io.BytesIO(packed)), piece) == b"".join(frames)


def test_a_large_stream_comes_in_pieces():
    data = os.urandom(1 << 20) + bytes(8 << 20)
    assert read_all(ZstdFile(io.BytesIO(compress(data))), 65_536) == data


def test_a_stream_that_was_cut_off_is_told_at_every_place():
    packed = compress(os.urandom(300))
    for end in range(1, len(packed)):
        with pytest.raises(ZstdError):
            read_all(ZstdFile(io.BytesIO(packed[:end])), 65_536)


def test_what_is_no_frame_is_told():
    with pytest.raises(ZstdError):
        read_all(ZstdFile(io.BytesIO(b"nothing that zstd made")), 100)


def test_zstd_is_known_by_how_it_begins():
    data = b"x" * 100_000
    source = decompressed(io.BytesIO(compress(data)))
    found = b"".join(iter(lambda: source.read(1000), b""))
    assert found == data
    damaged = decompressed(io.BytesIO(compress(data)[:-3]))
    with pytest.raises(DamagedError):
        while damaged.read(1000):
            pass
