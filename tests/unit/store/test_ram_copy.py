"""A RAM file is copied with its holes, and emptied with its size."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from vmfork.store.ram_file import copy_ram, create_ram_file, digest_open_ram, empty_ram

SIZE = 64 << 20


@pytest.fixture
def files(tmp_path):
    found = [create_ram_file(tmp_path / name, size_bytes=SIZE) for name in ("one", "other")]
    yield found
    for fd in found:
        os.close(fd)


def test_the_copy_has_what_the_file_has_and_no_more(files) -> None:
    one, other = files
    for at in (0, 1 << 20, (1 << 20) + 4096, SIZE - 4096):
        os.pwrite(one, os.urandom(4096), at)
    os.lseek(one, 5, os.SEEK_SET)  # wherever whoever has it open stands
    copy_ram(one, other)
    assert digest_open_ram(other).sha256 == digest_open_ram(one).sha256
    assert os.fstat(other).st_size == SIZE
    assert os.fstat(other).st_blocks * 512 < 1 << 20
    assert os.lseek(one, 0, os.SEEK_CUR) >= 0


def test_a_file_without_content_is_copied_as_that(files) -> None:
    copy_ram(*files)
    assert os.fstat(files[1]).st_blocks == 0


def test_an_emptied_file_has_its_size_and_nothing_in_it(tmp_path) -> None:
    fd = create_ram_file(tmp_path / "ram", size_bytes=SIZE)
    with closing(os.fdopen(fd)):
        os.pwrite(fd, b"x" * 8192, 4096)
        empty_ram(fd)
        assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (SIZE, 0)
