"""Names of folders, in whatever pieces they come, and what they may take."""

from __future__ import annotations

import tracemalloc
from itertools import islice

import pytest

from vmfork.errors import ProtocolError
from vmfork.wire.frame import encode_fields
from vmfork.wire.listing import FolderNames, Listing, TreeNames
from vmfork.wire.message import DirEntry, encode_text
from vmfork.wire.tree import Entry, encode_entry, encode_up

FOLDER = Entry("dir", b"d", 0o755, 1, 0, 0, 0)
FILE = Entry("file", b"f", 0o644, 2, 0, 0, 3)


def entry_of(name: bytes) -> bytes:
    return encode_fields(name, b"file", b"644", b"1", b"2")


def tree_of(*inside: bytes) -> bytes:
    return encode_entry(FOLDER) + b"".join(inside) + encode_up()


def read(parser, content: bytes, *, size: int, answer: bytes = b"") -> list[DirEntry]:
    found = [entry for at in range(0, len(content), size) for entry in parser.feed(content[at : at + size])]
    parser.check_end(answer)
    return found


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_entries_are_read_in_any_pieces_and_checked_against_their_number(size: int) -> None:
    content = entry_of(b"\xffname") + entry_of(b"b")
    one, other = read(FolderNames(), content, size=size, answer=encode_fields(b"2"))
    assert (one, other.name) == (DirEntry("\udcffname", "file", 0o644, 1, 2), "b")
    assert encode_text(one.name) == b"\xffname"
    for wrong, answer in ((content, b"1"), (content, b"3"), (content[:-1], b"2"), (b"", b"1")):
        with pytest.raises(ProtocolError, match="came"):
            read(FolderNames(), wrong, size=size, answer=encode_fields(answer))


def test_a_field_that_never_ends_is_no_entry() -> None:
    with pytest.raises(ProtocolError, match="more than"):
        read(FolderNames(), b"\xff\xff\xff\xff", size=4)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_names_become_paths(size: int) -> None:
    sub = encode_entry(FOLDER._replace(name=b"sub")) + encode_entry(FILE) + encode_up()
    tree = tree_of(encode_entry(FILE._replace(name=b"z")), sub)
    assert read(TreeNames(), tree, size=size) == [
        DirEntry("z", "file", 0o644, 3, 2),
        DirEntry("sub", "dir", 0o755, 0, 1),
        DirEntry("sub/f", "file", 0o644, 3, 2),
    ]
    for wrong in (encode_entry(FOLDER), encode_entry(FILE), b""):
        with pytest.raises(ProtocolError):
            read(TreeNames(), wrong, size=size)


@pytest.mark.parametrize("name", ["f%07d", "f%07d" + "x" * 200, "ä€%07d", "\U0001f600%07d", "\udcff%07d"])
@pytest.mark.parametrize("kind", [FolderNames, TreeNames])
def test_a_listing_takes_no_more_memory_than_it_may(kind, name: str) -> None:
    most = 1_000_000

    def pieces():
        yield encode_entry(FOLDER) if kind is TreeNames else b""
        for number in range(5000):
            called = encode_text(name % number)
            large = FILE._replace(name=called, size=2**60 + number, mtime_ns=2**60 + number)
            numbers = (b"%d" % large.size, b"%d" % large.mtime_ns)
            yield encode_entry(large) if kind is TreeNames else encode_fields(called, b"file", b"644", *numbers)

    for piece in islice(pieces(), 3):  # what is made once in a process is made
        Listing(kind(), most).add(piece if kind is FolderNames else encode_entry(FOLDER) + piece)

    def peak_of() -> int:
        listing = Listing(kind(), most)
        tracemalloc.start()
        try:
            took = sum(1 for piece in pieces() if listing.add(piece))
            entries = listing.sort()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(entries) <= took < 5000
        return peak

    # What other threads of this process take meanwhile is counted, too.
    assert most // 2 < min(peak_of() for _ in range(3)) < most * 1.1
