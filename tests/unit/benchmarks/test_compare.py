"""Two runs beside each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.suite.compare import compare_runs, find_regressions
from benchmarks.suite.figures import Row, Target
from tests.unit.benchmarks.samples import FORK, MEASURE, RATIO, RAW, run_of, slower


def change_of(before, after, key="fork.ratio"):
    return next(change for change in compare_runs(before, after) if change.key == key)


def test_a_run_is_the_same_as_itself():
    assert {change.verdict for change in compare_runs(run_of(), run_of())} == {"same"}
    assert find_regressions(run_of(), run_of()) == []


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "worse"), (0.7, "better"), (1.0, "same")])
def test_a_ratio_that_moved_is_told_with_its_factor(factor, verdict):
    change = change_of(run_of(), run_of(slower(factor)))
    assert change.verdict == verdict
    assert change.factor.value == pytest.approx(factor)
    assert change.factor.low <= factor <= change.factor.high


def test_only_ratios_count_as_regressions():
    twice = {"fork": [2 * value for value in FORK], "raw": [2 * value for value in RAW]}
    assert change_of(run_of(), run_of(twice), "fork.time").verdict == "worse"
    assert find_regressions(run_of(), run_of(twice)) == []
    assert [change.key for change in find_regressions(run_of(), run_of(slower(1.5)))] == ["fork.ratio"]


def test_what_is_sure_but_small_is_no_regression():
    assert change_of(run_of(), run_of(slower(1.05))).verdict == "worse"
    assert find_regressions(run_of(), run_of(slower(1.05))) == []


def test_what_is_large_but_within_noise_is_no_regression():
    noisy = {"fork": [0.05, 0.30, 0.06, 0.31], "raw": RAW}
    assert change_of(run_of(), run_of(noisy)).verdict == "same"
    assert find_regressions(run_of(), run_of(noisy)) == []


def test_where_more_is_better_less_is_worse():
    measure = replace(MEASURE, rows=(replace(RATIO, smaller_is_better=False, target=Target(at_least=1)),))
    before, after = run_of(measure=measure), run_of(slower(0.5), measure=measure)
    assert [change.verdict for change in compare_runs(before, after)] == ["worse"]
    assert len(find_regressions(before, after)) == 1


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, "worse"), (2.0, "worse"), (0.91, "better")])
def test_within_a_range_it_counts_how_far_it_is_from_the_middle(factor, verdict):
    measure = replace(MEASURE, rows=(replace(RATIO, target=Target(at_least=0.9, at_most=1.1)),))
    assert change_of(run_of(measure=measure), run_of(slower(factor), measure=measure)).verdict == verdict


def test_what_did_not_run_is_no_regression_and_says_why():
    absent = run_of({"raw": RAW}, skipped={"fork": "no QEMU"})
    change = change_of(run_of(), absent)
    assert (change.verdict, change.factor) == ("not comparable", None)
    assert change.reason == "not in the second run: no QEMU"
    assert find_regressions(run_of(), absent) == []


def test_a_row_of_one_run_alone_is_told():
    other = replace(MEASURE, rows=(*MEASURE.rows, Row(key="fork.new", text="new", kind="value", of="raw")))
    assert change_of(run_of(), run_of(measure=other), "fork.new").reason == "not in the first run"


def test_what_is_not_above_zero_has_no_ratio():
    negative = run_of({"fork": RAW, "raw": FORK})
    assert change_of(negative, run_of(), "fork.more").verdict == "not comparable"
