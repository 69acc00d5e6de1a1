"""Trees on the line: entries and pieces there and back in any cutting, and nothing else."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.errors import ProtocolError
from vmfork.wire.tree import (
    LARGEST_ENTRY,
    MOST_DEPTH,
    Entry,
    FileEnd,
    Piece,
    TreeParser,
    Up,
    encode_entry,
    encode_piece,
    encode_up,
    is_name,
)

SPECIFICATION = Path(__file__).parents[3] / "docs" / "reference" / "wire.md"

FOLDER = Entry("dir", b"d", 0o755, 1, 0, 0, 0)
FILE = Entry("file", b"f", 0o644, 2, 0, 0, 3)
TREE = encode_entry(FOLDER) + encode_entry(FILE) + encode_piece(0, b"abc") + encode_piece(3, b"") + encode_up()
PARTS = [FOLDER, FILE, Piece(0, b"abc"), FileEnd(3), Up()]

names = st.binary(min_size=1, max_size=255).filter(is_name)
owners = st.integers(min_value=0, max_value=2**32 - 2)
entries = st.builds(
    Entry,
    st.sampled_from(["link", "hard", "other"]),
    names,
    st.integers(min_value=0, max_value=0o7777),
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    owners,
    owners,
    st.integers(min_value=0, max_value=2**63 - 1),
    st.binary(max_size=300).filter(lambda target: b"\0" not in target),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def parse(data: bytes) -> list[object]:
    return [*TreeParser().feed(data)]


def test_the_tree_of_the_specification_is_what_is_sent() -> None:
    block = SPECIFICATION.read_text().split("## Trees")[1].split("```")[3]
    lines = (re.split(r"\s{2,}", line, maxsplit=1)[1] for line in block.strip().splitlines())
    assert bytes.fromhex("".join(lines)) == TREE
    assert parse(TREE) == PARTS


@given(st.lists(entries, max_size=5), st.binary(max_size=200), st.lists(st.integers(min_value=0), max_size=12))
def test_a_tree_survives_any_cutting(found: list[Entry], content: bytes, places: list[int]) -> None:
    file = FILE._replace(size=len(content))
    pieces = encode_piece(0, content) if content else b""
    whole = encode_entry(FOLDER) + b"".join(map(encode_entry, found)) + encode_entry(file) + pieces
    whole += encode_piece(len(content), b"") + encode_up()
    parser = TreeParser()
    parts = [part for piece in cut(whole, places) for part in parser.feed(piece)]
    came = b"".join(part.data for part in parts if isinstance(part, Piece))
    assert (came, parser.has_ended) == (content, True)
    others = [part for part in parts if not isinstance(part, Piece)]
    assert others == [FOLDER, *found, file, FileEnd(len(content)), Up()]


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0), max_size=8))
def test_garbage_is_parts_or_a_protocol_error_and_nothing_else(data: bytes, places: list[int]) -> None:
    parser = TreeParser()
    try:
        for piece in cut(data, places):
            [*parser.feed(piece)]
    except ProtocolError:
        pass


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"n" * 256])
def test_what_is_no_name_in_a_folder_is_a_protocol_error(name: bytes) -> None:
    assert not is_name(name)
    with pytest.raises(ProtocolError):
        parse(encode_entry(FOLDER._replace(name=name)))


@pytest.mark.parametrize(
    "data",
    [
        encode_up(),
        TREE + encode_entry(FILE),
        encode_entry(FOLDER) + encode_entry(FILE) + encode_piece(5, b"a") + encode_piece(3, b"b"),
        encode_entry(FOLDER) + encode_entry(FILE) + encode_piece(0, b"abc") + encode_piece(2, b""),
        encode_entry(FOLDER) + encode_entry(FILE) + encode_piece(2**63 - 1, b"abc"),
        encode_entry(FOLDER) * (MOST_DEPTH + 1),
        (LARGEST_ENTRY + 1).to_bytes(4, "big"),
        encode_entry(FOLDER._replace(type="socket")),
        encode_entry(FOLDER._replace(target=b"t" * 4096)),
        encode_entry(FOLDER._replace(uid=2**32)),
        encode_entry(FOLDER._replace(mode=0o10000)),
    ],
    ids=["up", "behind", "back", "cut", "large", "deep", "long", "type", "target", "owner", "mode"],
)
def test_what_is_no_tree_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(data)


def test_half_an_entry_is_not_given_on_and_half_a_piece_is() -> None:
    parser = TreeParser()
    head = len(encode_entry(FOLDER) + encode_entry(FILE))
    assert [*parser.feed(TREE[: head - 1])] == [FOLDER]
    assert [*parser.feed(TREE[head - 1 : head + 13])] == [FILE, Piece(0, b"a")]
    assert [*parser.feed(TREE[head + 13 :])] == [Piece(1, b"bc"), FileEnd(3), Up()]
