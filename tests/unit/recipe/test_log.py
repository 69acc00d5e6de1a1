"""A pattern is found in a log wherever its pieces were cut, and in no line that is not all there."""

from __future__ import annotations

import re

import pytest

from vmfork.recipe import log
from vmfork.recipe.log import LogSearch

TEXT = "begun\nlisten\xe9d on 80\nmore".encode()


def find(pattern: str, *pieces: bytes) -> list[bool]:
    """What was found with each piece, of which all but the last are followed by another."""
    search = LogSearch(re.compile(pattern, re.MULTILINE))
    found = [search.find(piece, goes_on=number < len(pieces)) for number, piece in enumerate(pieces, 1)]
    assert search.offset == sum(map(len, pieces))
    return found


@pytest.mark.parametrize("cut", range(len(TEXT) + 1))
def test_it_is_found_wherever_the_log_is_cut(cut) -> None:
    for pattern in ("^listen\xe9d on", "on 80$", "begun\nlisten", r"\Abegun"):
        assert any(find(pattern, TEXT[:cut], TEXT[cut:]))
    for pattern in ("^isten", "^on", r"\Alisten", "on$"):
        assert not any(find(pattern, TEXT[:cut], TEXT[cut:]))


def test_a_line_that_goes_on_is_looked_at_when_it_is_all_there() -> None:
    assert find("up$", b"one\nis up", b"side down\n", b"is up\n") == [False, False, True]


def test_little_is_kept_of_a_log_of_any_length(monkeypatch) -> None:
    monkeypatch.setattr(log, "_OVERLAP", 8)
    search = LogSearch(re.compile("^ready|^x", re.MULTILINE))
    for _ in range(50):
        assert not search.find(b"waits for it\n" * 3, goes_on=True)
        assert len(search._kept) <= 9
    # A line without an end is not kept either; what is kept of it is no beginning of a line.
    assert not search.find(b"y" * 100 + b"x", goes_on=True)
    assert not search.find(b"x" * 100, goes_on=True)
    assert len(search._kept) <= 9
    assert search.find(b"\nready", goes_on=False)
