"""What was measured of an image stays beside it and is never trusted when it is damaged."""

from __future__ import annotations

import pytest

from vmfork.image.least import NAME, read_least, write_least


def test_what_was_measured_reads_back(tmp_path) -> None:
    assert read_least(tmp_path) is None
    write_least(tmp_path, 232, measured="booted here")
    assert read_least(tmp_path) == 232
    assert "booted here" in (tmp_path / NAME).read_text()


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"\xff", b'{"format": 1}', b'{"format": 1, "min_memory_mib": "232"}',
     b'{"format": 1, "min_memory_mib": -1}', b'{"format": 2, "min_memory_mib": 232}'],
)  # fmt: skip
def test_what_is_damaged_counts_as_not_measured(tmp_path, text) -> None:
    (tmp_path / NAME).write_bytes(text)
    assert read_least(tmp_path) is None
