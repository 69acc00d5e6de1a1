"""Each property that docs/reference/factory-properties.md lists is checked by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROWS = [
    line.strip("|").split("|")
    for line in (ROOT / "docs" / "reference" / "factory-properties.md").read_text().splitlines()
    if line.startswith("| ") and "---" not in line
][1:]
TESTS = {
    name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())
}


def test_there_are_properties() -> None:
    assert len(ROWS) >= 25


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_a_property_names_tests_that_exist(row) -> None:
    named = re.findall(r"`(test_\w+)`", row[1])
    assert named
    assert set(named) <= TESTS
