"""A run as a file: what is written is read again, and what is none is refused."""

from __future__ import annotations

import pytest

from benchmarks.suite.figures import Target
from benchmarks.suite.result import MeasureResult, judge, read_result
from benchmarks.suite.words import format_figure, format_interval, format_target, format_value, format_verdict
from tests.unit.benchmarks.samples import MEASURE, RATIO, RAW, run_of
from vmfork.errors import ConfigError


def test_what_is_written_is_read_again(tmp_path):
    run_of().write(tmp_path / "run.json")
    found = read_result(tmp_path / "run.json")
    assert found.rows == run_of().rows
    assert found.measures["fork"].samples["raw"] == RAW
    found.write(tmp_path / "again.json")
    assert read_result(tmp_path / "again.json") == found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("nonsense", "is no whole result of a run: not JSON"),
        ("[]", "not a JSON object"),
        ('{"format": 99}', "format is 99, and this vmfork reads 1"),
        ('{"format": 1}', "mode is missing"),
        ('{"format": 1, "mode": "default", "started_at": 7}', "started_at is 7"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, content, reason):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=reason):
        read_result(tmp_path / "run.json")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_result(tmp_path / "none.json")


def test_figures_are_made_of_the_samples():
    found = run_of()
    assert found.row("fork.ratio").value == pytest.approx(1.10, abs=0.01)
    assert found.row("fork.time").value == pytest.approx(110, abs=1)
    assert found.row("fork.more").value == pytest.approx(10, abs=1)
    assert found.row("none") is None


@pytest.mark.parametrize(
    ("sides", "skipped", "status", "reason"),
    [
        ({}, {}, "", "no samples of fork, raw"),
        ({"fork": [0.1]}, {}, "", "no samples of raw"),
        ({"fork": [0.1]}, {"raw": "no QEMU"}, "", "no QEMU"),
        ({}, {"raw": "no QEMU"}, "it failed", "it failed"),
    ],
)
def test_a_row_without_samples_says_why(sides, skipped, status, reason):
    result = MeasureResult(title="", unit="s", samples=sides, skipped=skipped, status=status)
    row = judge(MEASURE, RATIO, result)
    assert (row.verdict, row.value, row.reason) == ("not run", None, reason)
    assert format_verdict(row) == f"not run: {reason}"
    assert (format_value(row), format_interval(row)) == ("not run", "")


@pytest.mark.parametrize(
    ("target", "value", "missed_by"),
    [
        (Target(at_most=2), 2, 0),
        (Target(at_most=2), 3, 0.5),
        (Target(at_least=2), 1, 0.5),
        (Target(at_least=2), 2, 0),
        (Target(at_least=0.9, at_most=1.1), 1, 0),
        (Target(at_least=0.5, at_most=1), 1.5, 0.5),
        (Target(at_least=0.5, at_most=1), 0.25, 0.5),
    ],
)
def test_a_target_says_by_how_much_it_is_missed(target, value, missed_by):
    assert target.missed_by(value) == pytest.approx(missed_by)
    assert target.is_met_by(value) == (missed_by == 0)


def test_verdicts_say_what_the_interval_allows():
    reached = run_of().row("fork.ratio")
    assert (reached.verdict, format_verdict(reached), format_target(reached)) == ("reached", "reached", "at most 1.15")
    missed = run_of({"fork": [0.2], "raw": [0.1]}).row("fork.ratio")
    assert (missed.verdict, format_verdict(missed)) == ("missed", "missed by 73.9%")
    unsure = run_of({"fork": [0.10, 0.11, 0.14, 0.16], "raw": [0.1]}).row("fork.ratio")
    assert format_verdict(unsure).endswith(" (within noise of it)")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "ms", "0 ms"),
        (0.1234, "", "0.123"),
        (1.2345, "", "1.23"),
        (71.31, "ms", "71.31 ms"),
        (4321.9, "ms", "4,322 ms"),
    ],
)
def test_figures_have_the_digits_that_say_something(value, unit, text):
    assert format_figure(value, unit) == text
