"""Mappings of known shape are counted as what they are."""

from __future__ import annotations

import mmap
import os
from contextlib import contextmanager

import pytest

from tests.children import exit_code_of, fork_child
from tests.rules.traces import open_descriptors
from vmfork.host.memory import read_memory
from vmfork.host.tmpfs import mount_tmpfs, unmount

PAGE = mmap.PAGESIZE
PAGES = 64
# Always given: a library of another file system may have the inode number too.
RAM_BYTES = PAGES * PAGE
# A size that no other anonymous mapping here has.
ODD_BYTES = 12_345 * PAGE


@pytest.fixture(autouse=True)
def no_descriptor_left():
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def ram():
    """A descriptor of a file with `PAGES` pages of data, and its inode."""
    fd = os.memfd_create("ram")
    os.pwrite(fd, b"x" * PAGES * PAGE, 0)
    yield fd, os.fstat(fd).st_ino
    os.close(fd)


@contextmanager
def mapped(fd, flags=mmap.MAP_PRIVATE, *, length=PAGES * PAGE):
    with mmap.mmap(fd, length, flags, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        mapping.madvise(mmap.MADV_NOHUGEPAGE) if fd == -1 else None
        yield mapping


def touch(mapping, pages, *, write=False):
    for number in pages:
        if write:
            mapping[number * PAGE] = 1
        else:
            assert mapping[number * PAGE] in (0, ord("x"))


def test_ram_that_was_not_touched_costs_nothing(ram):
    with mapped(ram[0]):
        use = read_memory(os.getpid(), ram_inode=ram[1], ram_bytes=RAM_BYTES)
    assert (use.guest_rss, use.guest_private, use.guest_shared) == (0, 0, 0)
    assert use.rss >= use.pss > 0
    assert use.rss >= use.private > 0


def test_read_pages_are_shared_and_written_ones_private(ram):
    with mapped(ram[0]) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)
        touch(mapping, range(PAGES))
        read = read_memory(os.getpid(), ram_inode=ram[1], ram_bytes=RAM_BYTES)
        assert (read.guest_rss, read.guest_private) == (PAGES * PAGE, 0)
        touch(mapping, range(0, PAGES, 4), write=True)
        written = read_memory(os.getpid(), ram_inode=ram[1], ram_bytes=RAM_BYTES)
    assert (written.guest_rss, written.guest_private) == (PAGES * PAGE, PAGES // 4 * PAGE)
    assert written.guest_shared == PAGES * 3 // 4 * PAGE


def test_a_file_mapped_shared_has_no_private_page_however_often_it_is_written(ram):
    """A template machine's RAM while it is made; the kernel calls pages of a file with one user private."""
    with mapped(ram[0], mmap.MAP_SHARED) as mapping:
        touch(mapping, range(PAGES), write=True)
        use = read_memory(os.getpid(), ram_inode=ram[1], ram_bytes=RAM_BYTES)
    assert (use.guest_rss, use.guest_private) == (PAGES * PAGE, 0)


def test_all_mappings_of_the_file_count_and_those_of_others_do_not(ram):
    other = os.memfd_create("other")
    os.pwrite(other, b"x" * PAGES * PAGE, 0)
    with mapped(ram[0]) as first, mapped(ram[0]) as second, mapped(other) as third:
        for mapping, pages in ((first, 2), (second, 3), (third, 16)):
            touch(mapping, range(pages), write=True)
        use = read_memory(os.getpid(), ram_inode=ram[1], ram_bytes=RAM_BYTES)
    os.close(other)
    assert use.guest_private == 5 * PAGE


@pytest.mark.needs("root")
def test_a_file_of_another_file_system_with_the_same_number_does_not_count(tmp_path):
    """As root every template has a tmpfs of its own, whose first files have the same few numbers."""
    fds = []
    for name, pages in (("a", PAGES), ("b", 2 * PAGES)):
        folder = tmp_path / name
        folder.mkdir()
        assert mount_tmpfs(folder, size_bytes=4 * PAGES * PAGE)
        fds.append(os.open(folder / "memory", os.O_RDWR | os.O_CREAT))
        os.pwrite(fds[-1], b"x" * pages * PAGE, 0)
    inode = os.fstat(fds[0]).st_ino
    assert inode == os.fstat(fds[1]).st_ino
    try:
        with mapped(fds[0]) as ours, mapped(fds[1], length=2 * PAGES * PAGE) as others:
            touch(ours, range(4), write=True)
            touch(others, range(32), write=True)
            use = read_memory(os.getpid(), ram_inode=inode, ram_bytes=PAGES * PAGE)
            assert read_memory(os.getpid(), ram_inode=inode, ram_bytes=PAGE).guest_rss == 0
    finally:
        for name, fd in zip("ab", fds, strict=True):
            os.close(fd)
            unmount(tmp_path / name)
    assert use.guest_private == 4 * PAGE


def test_anonymous_ram_is_found_by_its_size():
    with mapped(-1, mmap.MAP_PRIVATE, length=ODD_BYTES) as mapping:
        touch(mapping, range(10), write=True)
        use = read_memory(os.getpid(), ram_bytes=ODD_BYTES)
    assert (use.guest_rss, use.guest_private) == (10 * PAGE, 10 * PAGE)
    assert read_memory(os.getpid(), ram_bytes=ODD_BYTES).guest_rss == 0


def test_without_a_guest_nothing_is_its(ram):
    with mapped(ram[0]) as mapping:
        touch(mapping, range(PAGES), write=True)
        use = read_memory(os.getpid())
    assert (use.guest_rss, use.guest_private) == (0, 0)
    assert use.private >= PAGES * PAGE


def test_another_process_shares_what_it_has_not_written(ram):
    """As a fork does: pages of the template count for both, each copy for one."""
    ready, end = os.pipe(), os.pipe()

    def read_and_write():
        with mapped(ram[0]) as mapping:
            touch(mapping, range(PAGES))
            touch(mapping, range(8), write=True)
            os.write(ready[1], b"x")
            os.read(end[0], 1)

    with mapped(ram[0]) as mapping:
        touch(mapping, range(PAGES))
        pid = fork_child(read_and_write)
        os.read(ready[0], 1)
        use = read_memory(pid, ram_inode=ram[1], ram_bytes=RAM_BYTES)
        os.write(end[1], b"x")
        assert exit_code_of(pid) == 0
    # The child has our mapping too, which fork(2) copied: its read pages are in neither's name.
    assert use.guest_private == 8 * PAGE
    assert use.guest_shared >= (PAGES - 8) * PAGE
    for fd in (*ready, *end):
        os.close(fd)


def test_memory_that_was_added_may_lie_in_the_file_behind_the_rest():
    """As that of a fork of a machine that had grown. A file that ends elsewhere is another's with the same number."""
    fd = os.memfd_create("grown")
    os.ftruncate(fd, RAM_BYTES + ODD_BYTES)
    inode = os.fstat(fd).st_ino
    with mapped(fd, length=RAM_BYTES) as booted, mmap.mmap(fd, ODD_BYTES, mmap.MAP_PRIVATE, offset=RAM_BYTES) as added:
        touch(booted, range(3), write=True)
        added[0] = added[PAGE] = 1
        known = [read_memory(os.getpid(), ram_inode=inode, ram_bytes=RAM_BYTES, added_bytes=[ODD_BYTES, ODD_BYTES])]
        known.append(read_memory(os.getpid(), ram_inode=inode, ram_bytes=RAM_BYTES))
    os.close(fd)
    assert [use.guest_private for use in known] == [5 * PAGE, 0]


def test_what_lies_over_the_file_is_shared_with_siblings(ram):
    """As in a live fork: pages of the second file over those of the first, each of which may be written."""
    upper = os.memfd_create("upper")
    os.pwrite(upper, b"x" * PAGES * PAGE, 0)
    with mapped(ram[0]) as below, mapped(upper) as over:
        for mapping, written in ((below, 3), (over, 5)):
            touch(mapping, range(PAGES))
            touch(mapping, range(written), write=True)
        inode = os.fstat(upper).st_ino
        use = read_memory(os.getpid(), ram_inode=ram[1], upper_inode=inode, ram_bytes=RAM_BYTES)
    os.close(upper)
    assert (use.guest_private, use.guest_base, use.guest_siblings) == (8 * PAGE, (PAGES - 3) * PAGE, (PAGES - 5) * PAGE)


def test_a_process_that_is_gone_is_an_error():
    pid = fork_child(lambda: None)
    assert exit_code_of(pid) == 0
    with pytest.raises(OSError, match="No such"):
        read_memory(pid)
