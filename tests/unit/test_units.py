"""Sizes and counts read as people write them, and what is written reads back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.units import format_count, format_mib, parse_size_mib


@pytest.mark.parametrize(
    ("mib", "shown"),
    [(1, "1 MiB"), (211.4, "211.4 MiB"), (256, "256 MiB"), (1024, "1 GiB"), (1536, "1.5 GiB"), (1025, "1025 MiB"),
     (1_022_980, "1022980 MiB"), (999 * 1024, "999 GiB")],
)  # fmt: skip
def test_a_size_is_shown_with_its_digits(mib, shown) -> None:
    assert format_mib(mib) == shown


@given(st.integers(1, 1 << 24))
def test_a_whole_number_of_mib_that_is_shown_can_be_given(mib) -> None:
    shown = format_mib(mib)
    assert "e" not in shown
    if not shown.endswith(".5 GiB"):
        assert parse_size_mib(shown) == mib


def test_one_is_not_many() -> None:
    assert [format_count(count, "program") for count in (0, 1, 2)] == ["0 programs", "1 program", "2 programs"]
