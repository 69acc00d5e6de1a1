"""Each promise of the specification has a number of its own and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "SPECIFICATION.md"
# `::*` stands for every test of a file whose one subject is the promise.
_NODE = re.compile(r"`(tests/[\w/]+\.py)::(\w+|\*)`")
_ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text().splitlines()
    if line.startswith("| P")
]


def test_each_number_is_there_once_from_one_on() -> None:
    """Not in their order: a promise keeps its number, and a new one joins its group with the next."""
    assert sorted(int(number[1:]) for number, *_ in _ROWS) == [*range(1, len(_ROWS) + 1)]
    assert len(_ROWS) > 50


@pytest.mark.parametrize(("number", "promise", "held_by"), _ROWS, ids=[number for number, *_ in _ROWS])
def test_a_promise_is_held_by_tests_that_exist(number, promise, held_by) -> None:
    assert promise.endswith(".")
    named = _NODE.findall(held_by)
    assert named, f"no test holds {number}"
    assert _NODE.sub("", held_by).strip(", ") == "", "a test is named by its node id"
    for file, name in named:
        defined = re.findall(r"^(?:async )?def (test_\w+)", (ROOT / file).read_text(), re.MULTILINE)
        assert name in defined or (name == "*" and defined), f"{file}::{name}"
