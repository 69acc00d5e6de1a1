"""A RAM file is sparse, and its digest is of what a guest would read, wherever holes lie."""

from __future__ import annotations

import os
import resource
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmfork.store.ram_file import RAMDigesting, create_ram_file, digest_open_ram, digest_ram

PAGE = 4096
SIZE = 16 * 1024 * 1024


def write_pages(path, pages, *, size=SIZE):
    """A file with the given pages (number -> content), all else holes."""
    path.unlink(missing_ok=True)
    fd = create_ram_file(path, size_bytes=size)
    for number, content in pages.items():
        os.pwrite(fd, content, number * PAGE)
    os.close(fd)
    return path


def test_a_new_file_is_private_sparse_and_of_its_size(tmp_path):
    path = write_pages(tmp_path / "memory", {})
    info = path.stat()
    assert (info.st_size, info.st_blocks, info.st_mode & 0o777) == (SIZE, 0, 0o600)
    with pytest.raises(FileExistsError):
        create_ram_file(path, size_bytes=SIZE)
    assert digest_ram(path).allocated_bytes == 0


@pytest.fixture
def only_small_files():
    """No file of this process can be made larger than a page: a limit that every file system keeps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_size_that_cannot_be_leaves_no_descriptor(tmp_path, only_small_files):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="File too large"):
        create_ram_file(tmp_path / "memory", size_bytes=SIZE)
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(numbers=st.sets(st.integers(0, SIZE // PAGE - 1), max_size=8), zeros=st.sets(st.integers(0, SIZE // PAGE - 1)))
def test_zeros_and_holes_count_alike(tmp_path, numbers, zeros):
    pages = {number: number.to_bytes(4, "big") + b"x" * (PAGE - 4) for number in numbers}
    sparse = digest_ram(write_pages(tmp_path / "memory", pages))
    filled = digest_ram(write_pages(tmp_path / "memory", {**dict.fromkeys(zeros, bytes(PAGE)), **pages}))
    assert filled.sha256 == sparse.sha256
    assert sparse.allocated_bytes == len(pages) * PAGE


def test_a_page_elsewhere_or_of_one_other_bit_is_another_digest(tmp_path):
    page = b"\1" + bytes(PAGE - 1)
    digests = {
        digest_ram(write_pages(tmp_path / "memory", pages)).sha256
        for pages in ({}, {0: page}, {1: page}, {1: b"\2" + page[1:]}, {0: page, 1: page}, {1025: page}, {4095: page})
    }
    assert len(digests) == 7


def test_an_open_file_is_read_from_its_start_although_it_was_removed(tmp_path):
    path = write_pages(tmp_path / "memory", {3: b"x" * PAGE})
    want = digest_ram(path)
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    os.lseek(fd, 0, os.SEEK_END)
    assert digest_open_ram(fd) == want
    os.close(fd)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    numbers=st.sets(st.integers(0, SIZE // PAGE - 1), max_size=20),
    ends=st.lists(st.integers(0, SIZE // PAGE), max_size=5).map(sorted),
)
def test_the_digest_is_the_same_in_parts_while_more_is_written_behind(tmp_path, numbers, ends):
    path = write_pages(tmp_path / "memory", {})
    fd = os.open(path, os.O_RDWR)
    try:
        digesting = RAMDigesting(fd)
        for begin, end in pairwise([0, *ends, SIZE // PAGE]):
            for number in numbers:
                if begin <= number < end:
                    os.pwrite(fd, number.to_bytes(4, "big") + b"x" * (PAGE - 4), number * PAGE)
            digesting.go_on(end * PAGE)
        assert digesting.found == digest_open_ram(fd)
    finally:
        os.close(fd)
