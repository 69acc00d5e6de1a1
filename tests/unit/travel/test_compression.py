"""One zstd frame of a size that is known: no more is made of it, whatever it claims."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.travel.compression import compress, decompress


@given(st.binary(max_size=2000))
def test_it_comes_back(data) -> None:
    assert decompress(compress(data), len(data)) == data


@given(st.binary(max_size=200), st.integers(0, 300))
def test_garbage_and_wrong_sizes_are_refused(data, size) -> None:
    with pytest.raises(ValueError, match="zstd"):
        decompress(data, size)
    if size != len(data):
        with pytest.raises(ValueError, match="zstd"):
            decompress(compress(data), size)


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_frame_that_is_cut_off_or_followed_is_refused(size) -> None:
    data = compress(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    for wrong in (data[:-1], data[: len(data) // 2], data + b"x", data + data):
        with pytest.raises(ValueError, match="zstd"):
            decompress(wrong, size)


def test_a_frame_that_is_far_more_than_it_should_be_takes_no_memory() -> None:
    bomb = compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="zstd"):
            decompress(bomb, 4096)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20
