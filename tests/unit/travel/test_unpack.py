"""The digest of RAM that is being written is that of what lies there at the end, in whatever order it came."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmfork.store.ram_file import PAGE, create_ram_file, digest_open_ram
from vmfork.travel.unpack import WrittenDigest


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "places",
    [[], [0, 8, 16], [5], [0, 8, 4], [16, 8, 0], [0, 8, 0, 8, 3], [0, 0]],
    ids=lambda places: "-".join(map(str, places)) or "nothing",
)
def test_what_lies_over_what_was_written_counts(tmp_path: Path, places: list[int], at_once: bool) -> None:
    fd = create_ram_file(tmp_path / "memory", size_bytes=32 * PAGE)
    try:
        with WrittenDigest(fd, at_once=at_once) as digest:
            for number, place in enumerate(places):
                data = b"".join(bytes([number + 1]) * PAGE for _ in range(4))
                os.pwrite(fd, data, place * PAGE)
                digest.note(place * PAGE, (place + 4) * PAGE)
            assert digest.finish() == digest_open_ram(fd)
    finally:
        os.close(fd)


def test_what_fails_meanwhile_is_told_at_the_end(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "memory", os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(fd, b"x" * PAGE, 0)
        with WrittenDigest(fd, at_once=True) as digest:
            digest.note(0, PAGE)
            with pytest.raises(OSError, match="Bad file descriptor"):
                digest.finish()
    finally:
        os.close(fd)
