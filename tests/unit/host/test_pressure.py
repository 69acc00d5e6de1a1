"""Memory pressure as the kernel tells it."""

from __future__ import annotations

import pytest

from vmfork.host.pressure import read_pressure_percent

SOME = "some avg10=50.00 avg60=0.00 avg300=0.00 total=1\n"


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        (SOME + "full avg10=12.34 avg60=0.00 avg300=0.00 total=9\n", 12.34),
        (SOME + "full avg10=0.00 avg60=90.00 avg300=0.00 total=9\n", 0.0),
        (SOME, None),
        ("", None),
        ("full avg10=nan avg60=0.00 avg300=0.00 total=9\n", None),
        ("full avg10=x avg60=0.00 avg300=0.00 total=9\n", None),
    ],
)
def test_the_time_in_which_all_tasks_waited_counts(tmp_path, text, percent) -> None:
    file = tmp_path / "memory"
    file.write_text(text)
    assert read_pressure_percent(file) == percent


def test_a_kernel_that_does_not_tell_is_none(tmp_path) -> None:
    assert read_pressure_percent(tmp_path / "missing") is None
