"""RAM becomes records and comes back as it was; whatever else is given is refused, and never read past its end."""

from __future__ import annotations

import struct
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.store.ram_file import PAGE
from vmfork.travel.pages import Piece, decode, largest
from vmfork.travel.pages import encode as encode_into

# Few kinds of pages, so that runs of them, zeros and pages that are there already all come up.
PAGES = st.lists(st.sampled_from([bytes(PAGE), b"a" * PAGE, b"b" * PAGE]), min_size=1, max_size=12).map(b"".join)


def encode(pieces) -> bytes:
    """Into what something else was in before, of just the room that there has to be."""
    read = [Piece(at, len(data), partial(_fill, data), there) for at, data, there in pieces]
    return bytes(encode_into(read, bytearray(b"x" * sum(largest(len(data)) for _, data, _ in pieces))))


def _fill(data: bytes, view: memoryview) -> None:
    view[:] = data


def apply(records: bytes, there: bytes, *, piece: int = 1 << 20) -> bytes:
    memory = bytearray(there)
    for position, content in decode(cut(records, piece), len(there)):
        memory[position : position + len(content)] = content
    return bytes(memory)


def cut(records: bytes, piece: int) -> list[bytes]:
    return [records[at : at + piece] for at in range(0, len(records), piece)]


@given(PAGES, PAGES, st.integers(1, 3 * PAGE))
def test_records_may_be_cut_anywhere(memory, there, piece) -> None:
    there = there.ljust(len(memory), b"\0")[: len(memory)]
    records = encode([(0, memory, there)])
    assert apply(records, there, piece=piece) == memory
    if records:
        with pytest.raises(ValueError, match="a record"):
            apply(records[:-1], there, piece=piece)


def test_a_record_of_zeros_is_no_more_at_once_than_others_are() -> None:
    head = struct.pack("<QII", 0, 1 << 20, 0)
    sizes = [len(content) for _, content in decode([head], 4 << 30)]
    assert (sum(sizes), max(sizes) <= 1 << 20) == (4 << 30, True)


@given(PAGES, st.data())
def test_what_differs_is_all_that_is_needed(memory, data) -> None:
    there = data.draw(st.binary(min_size=0, max_size=0) | PAGES).ljust(len(memory), b"\0")[: len(memory)]
    records = encode([(0, memory, there)])
    assert apply(records, there) == memory
    assert len(records) <= largest(len(memory))
    same = sum(memory[at : at + PAGE] == there[at : at + PAGE] for at in range(0, len(memory), PAGE))
    content = sum(len(c) for _, c in decode([records], len(memory)))
    assert content <= len(memory) - same * PAGE


@given(PAGES)
def test_where_nothing_is_said_to_be_there_zeros_are(memory) -> None:
    assert encode([(0, memory, None)]) == encode([(0, memory, bytes(len(memory)))])


@given(st.lists(st.tuples(st.integers(0, 3), PAGES), min_size=1, max_size=5))
def test_pieces_keep_their_places(pieces) -> None:
    position, given_pieces, memory = 0, [], b""
    for gap, data in pieces:
        memory += bytes(gap * PAGE) + data
        given_pieces.append((position + gap * PAGE, data, bytes(len(data))))
        position += gap * PAGE + len(data)
    assert apply(encode(given_pieces), bytes(len(memory))) == memory


def test_zeros_over_zeros_are_nothing() -> None:
    assert encode([(0, bytes(5 * PAGE), bytes(5 * PAGE))]) == b""
    assert encode([]) == b""


@given(st.binary(max_size=200) | st.builds(lambda head, rest: head + rest, st.binary(max_size=48), PAGES))
def test_garbage_is_refused_or_stays_within_the_ram(data) -> None:
    try:
        runs = [(at, len(c)) for at, c in decode([data], 8 * PAGE)]
    except ValueError:
        return
    ends = [0, *(at + size for at, size in runs)]
    assert all(end <= at for end, (at, _) in zip(ends, runs, strict=False))
    assert ends[-1] <= 8 * PAGE


@pytest.mark.parametrize(
    "head",
    [
        (1, 1, 0),  # between two pages
        (0, 0, 0),  # no page
        (8 * PAGE, 1, 0),  # behind the end
        (0, 9, 0),
        (0, 1, 2),  # no kind
        (0, 1, 1),  # its content is missing
        (2**64 - PAGE, 1, 0),
        (0, 2**32 - 1, 0),
    ],
)
def test_a_record_that_cannot_be_is_refused(head) -> None:
    with pytest.raises(ValueError, match="a record"):
        list(decode([struct.pack("<QII", *head)], 8 * PAGE))


def test_records_that_go_back_are_refused() -> None:
    record = struct.pack("<QII", PAGE, 1, 0)
    with pytest.raises(ValueError, match="a record"):
        list(decode([record + record], 8 * PAGE))
