"""What was made smaller is read as it was, in bounded memory."""

from __future__ import annotations

import io
import lzma
import random
import zlib

import pytest

from tests.images import Member, make_layer
from vmfork.container.layer import Applying, Contents
from vmfork.container.limits import Budget
from vmfork.container.root import Root
from vmfork.errors import ArtifactError
from vmfork.host.compressed import DamagedError, decompressed

BODY = random.Random(7).randbytes(100_000) + bytes(300_000) + b"end"


def read_all(data: bytes, piece: int = 70_001) -> bytes:
    source, found = decompressed(io.BytesIO(data)), []
    while more := source.read(piece):
        found.append(more)
    assert {len(each) for each in found[:-1]} <= {piece}  # all that was asked for, but at the end
    return b"".join(found)


def make_greedy(body: bytes, size: int = 40) -> bytes:
    """What xz makes of the body, with a header that asks for a dictionary of that size: 30 is 128 MiB, 40 is 4 GiB."""
    data = bytearray(lzma.compress(body))
    begin, end = 12, 12 + 4 * (data[12] + 1)
    data[begin + 4] = size  # behind its own size, flags, the filter, and how many bytes are said of that
    data[end - 4 : end] = zlib.crc32(data[begin : end - 4]).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("kind", [lzma.FORMAT_XZ, lzma.FORMAT_ALONE])
def test_what_xz_made_is_read_as_it_was(kind):
    assert read_all(lzma.compress(BODY, kind)) == BODY


def test_streams_behind_each_other_and_zeros_between_them_are_one():
    one = lzma.compress(BODY)
    assert read_all(one + bytes(8) + one + bytes(70_000) + one + bytes(4)) == BODY * 3


@pytest.mark.parametrize("end", [lambda data: data[:-20], lambda data: data + b"garbage", lambda data: data[:7]])
def test_what_is_cut_off_or_goes_on_as_something_else_is_named(end):
    with pytest.raises(DamagedError):
        read_all(end(lzma.compress(BODY)))


def test_a_few_bytes_that_ask_for_much_memory_are_refused_by_that():
    data = make_greedy(make_layer([Member("a", body=b"a")]))
    with pytest.raises(DamagedError, match="256 MiB of memory"):
        read_all(data)
    with pytest.raises(ArtifactError, match="256 MiB of memory"):
        Applying(Root(), Contents(io.BytesIO()), Budget()).apply(io.BytesIO(data), "layer 1")


def test_what_needs_less_is_read():
    assert read_all(make_greedy(BODY, size=30)) == BODY
