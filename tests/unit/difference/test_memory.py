"""Pages that differ, of memory that this process has mapped as emulators map theirs."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import ExitStack

import pytest

from vmfork.difference.memory import MemoryDifference, _count, _Pages, _Piece
from vmfork.host.mapped import MappedMemory

PAGE, PAGES = 4096, 64


class Memories:
    """Memories that are read from files, of which the last may have more than the machine was booted with."""

    def __init__(self, opened: ExitStack) -> None:
        self.opened = opened
        self.mem, self.pagemap = (os.open(f"/proc/self/{name}", os.O_RDONLY) for name in ("mem", "pagemap"))
        opened.callback(os.close, self.mem)
        opened.callback(os.close, self.pagemap)

    def file(self, *pages: int, text: bytes = b"file") -> int:
        fd = os.memfd_create("layer")
        self.opened.callback(os.close, fd)
        os.ftruncate(fd, 2 * PAGES * PAGE)
        for page in pages:
            os.pwrite(fd, text, page * PAGE)
        return fd

    def map(self, fd: int, offset: int = 0) -> mmap.mmap:
        return mmap.mmap(fd, PAGES * PAGE, mmap.MAP_PRIVATE, offset=offset)

    def look(self, *held: int, pieces: list[mmap.mmap]) -> _Pages:
        found = [
            _Piece(number * PAGES, PAGES, ctypes.addressof(ctypes.c_char.from_buffer(piece)))
            for number, piece in enumerate(pieces)
        ]
        return _Pages(MappedMemory(self.mem, self.pagemap, -1, held), found)


@pytest.fixture
def memories():
    with ExitStack() as opened:
        yield Memories(opened)


def test_pages_that_one_has_for_itself_differ_where_their_content_does(memories) -> None:
    file = memories.file(1, 2, 3)
    one, other = memories.map(file), memories.map(file)
    one[PAGE : PAGE + 4] = other[2 * PAGE : 2 * PAGE + 4] = b"mine"
    one[3 * PAGE : 3 * PAGE + 4] = b"file"  # its own page, with what the file has
    other[9 * PAGE] = 1  # what was a hole of the file: the kernel makes it a page of both
    before = os.fstat(file).st_blocks
    found = _count(memories.look(file, pieces=[one]), memories.look(file, pieces=[other]))
    assert found == MemoryDifference(pages=3, ours=2, theirs=2)
    assert found.mib == 3 / 256
    # No hole was read into a page of the host's memory.
    assert os.fstat(file).st_blocks == before


def test_siblings_do_not_differ_in_what_both_are_read_from(memories) -> None:
    lower, upper, another = memories.file(1, 2), memories.file(2, 3, text=b"upper"), memories.file(3, text=b"upper")
    one, other = memories.map(lower), memories.map(lower)
    same = _count(memories.look(lower, upper, pieces=[one]), memories.look(lower, upper, pieces=[other]))
    assert same.pages == 0
    # Page 2 is of the upper file in one, and of the lower in the other; page 3 has the same text in both.
    differs = _count(memories.look(lower, upper, pieces=[one]), memories.look(lower, another, pieces=[other]))
    assert differs.pages == 1


def test_what_was_added_is_compared_too_and_comes_from_the_last_file_alone(memories) -> None:
    lower, upper = memories.file(PAGES + 5), memories.file(PAGES + 6)
    one, added = memories.map(lower), memories.map(upper, PAGES * PAGE)
    added[7 * PAGE] = 1
    found = _count(memories.look(lower, upper, pieces=[one, added]), memories.look(lower, pieces=[memories.map(lower)]))
    # Page 5 is a former machine's, and nobody's here.
    assert found.pages == 2
