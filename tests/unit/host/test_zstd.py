"""What zstd made smaller: streams that are read piece by piece, and frames of a size that is known."""

from __future__ import annotations

import io
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.host.compressed import DamagedError, decompressed
from vmfork.host.zstd import ZstdError, ZstdReader, compress, decompress, decompress_in_pieces


def read_all(source: ZstdReader, piece: int) -> bytes:
    found = bytearray()
    while data := source.read(piece):
        assert len(data) <= piece
        found += data
    return bytes(found)


@given(st.lists(st.binary(max_size=5000), min_size=1, max_size=4), st.integers(1, 70_000))
def test_what_zstd_made_smaller_is_as_it_was_whatever_is_asked_for_at_a_time(frames, piece):
    packed = b"".join(compress(frame) for frame in frames)
    assert read_all(ZstdReader(io.BytesIO(packed)), piece) == b"".join(frames)


def test_a_large_stream_comes_in_pieces():
    data = os.urandom(1 << 20) + bytes(8 << 20)
    assert read_all(ZstdReader(io.BytesIO(compress(data))), 65_536) == data


def test_a_stream_that_was_cut_off_is_told_at_every_place():
    packed = compress(os.urandom(300))
    for end in range(1, len(packed)):
        with pytest.raises(ZstdError):
            read_all(ZstdReader(io.BytesIO(packed[:end])), 65_536)


def test_what_is_no_frame_is_told():
    with pytest.raises(ZstdError):
        read_all(ZstdReader(io.BytesIO(b"nothing that zstd made")), 100)


def test_zstd_is_known_by_how_it_begins():
    data = b"x" * 100_000
    source = decompressed(io.BytesIO(compress(data)))
    found = b"".join(iter(lambda: source.read(1000), b""))
    assert found == data
    damaged = decompressed(io.BytesIO(compress(data)[:-3]))
    with pytest.raises(DamagedError):
        while damaged.read(1000):
            pass


# One frame of a size that is known: no more is made of it, whatever it claims.


@given(st.binary(max_size=2000))
def test_a_frame_comes_back(data):
    assert decompress(compress(data), len(data)) == data


@given(st.binary(max_size=200), st.integers(0, 300))
def test_garbage_and_wrong_sizes_are_refused(data, size):
    with pytest.raises(ValueError, match="zstd"):
        decompress(data, size)
    if size != len(data):
        with pytest.raises(ValueError, match="zstd"):
            decompress(compress(data), size)


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_frame_that_is_cut_off_or_followed_is_refused(size):
    data = compress(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    for wrong in (data[:-1], data[: len(data) // 2], data + b"x", data + data):
        with pytest.raises(ValueError, match="zstd"):
            decompress(wrong, size)


def test_a_frame_comes_in_pieces_that_are_small():
    data = os.urandom(1 << 20) + bytes(8 << 20)
    pieces = [*decompress_in_pieces(compress(data), len(data))]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) < 1 << 20


def test_a_frame_that_is_far_more_than_it_should_be_takes_no_memory():
    bomb = compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="zstd"):
            decompress(bomb, 4096)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20
