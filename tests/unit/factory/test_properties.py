"""Each property that docs/reference/factory-properties.md lists is checked by tests that exist, or has a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "factory-properties.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| there |", "| --- |"))
]
TESTS = {
    name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", path.read_text())
}


def test_every_property_is_there_once() -> None:
    assert len(ROWS) >= 160
    assert {len(row) for row in ROWS} == {2}
    properties = [row[0] for row in ROWS]
    assert len(properties) == len(set(properties))


def test_every_table_has_its_head() -> None:
    tables = [section.partition("\n\n")[2] for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:-1]]
    assert all(table.startswith("| there | here |\n| --- | --- |\n") for table in tables)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_property_names_tests_that_exist_or_a_reason(row) -> None:
    named = re.findall(r"`(test_\w+)`", row[1])
    reason = re.fullmatch(r"Reason: (.+)\.", row[1])
    assert named or (reason is not None and len(reason[1].split()) >= 3)
    assert set(named) <= TESTS
