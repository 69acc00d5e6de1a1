"""Two runs beside each other: what changed, how surely, and whether it is a regression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.suite.result import figure_of
from vmfork.bench.stats import Estimate, bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite.result import RowResult, RunResult

# A regression has to be this sure, and this large: two runs of one program on a shared machine differ by more than
# their own samples tell, as each meets other neighbours.
CHECK_CONFIDENCE = 0.99
TOLERANCE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one row from one run to another.

    `factor` is the second figure over the first, with its interval. `verdict`: `same` (the interval holds 1), `better`,
    `worse`, or `not comparable` with the `reason`. `side_by_side`: it is a ratio, so that the machine is not in it.
    """

    key: str
    text: str
    unit: str
    before: float | None
    after: float | None
    factor: Estimate | None
    verdict: str
    side_by_side: bool
    reason: str = ""


def compare_runs(before: RunResult, after: RunResult, *, confidence: float = 0.95) -> Sequence[Change]:
    """Every row that one of both runs has, in the order of the second."""
    keys = dict.fromkeys([*(row.key for row in after.rows), *(row.key for row in before.rows)])
    return [_compare(key, before, after, confidence) for key in keys]


def find_regressions(baseline: RunResult, run: RunResult) -> Sequence[Change]:
    """The ratios of `run` that are worse than the baseline's beyond noise. What did not run is no regression."""
    changes = compare_runs(baseline, run, confidence=CHECK_CONFIDENCE)
    return [change for change in changes if change.side_by_side and is_regression(change)]


def is_regression(change: Change) -> bool:
    """Whether it is surely worse, and by more than two runs differ anyway."""
    if change.factor is None or change.verdict != "worse":
        return False
    return abs(math.log(change.factor.value)) > math.log(1 + TOLERANCE)


def _compare(key: str, before: RunResult, after: RunResult, confidence: float) -> Change:
    first, second = before.row(key), after.row(key)
    row = second or first
    assert row is not None
    reason = ""
    for found, which in ((first, "first"), (second, "second")):
        if found is None or found.value is None:
            reason = reason or f"not in the {which} run{f': {found.reason}' if found else ''}"
    if first and second and not reason and first.value is not None and second.value is not None:
        factor = _factor(first, before, second, after, confidence)
        if factor is not None:
            return Change(
                key=key, text=row.text, unit=row.unit, before=first.value, after=second.value, factor=factor,
                verdict=_judge(row, factor, first.value), side_by_side=row.is_side_by_side,
            )  # fmt: skip
        reason = "a figure of 0 or less has no ratio"
    return Change(
        key=key, text=row.text, unit=row.unit, before=first.value if first else None,
        after=second.value if second else None, factor=None, verdict="not comparable",
        side_by_side=row.is_side_by_side, reason=reason,
    )  # fmt: skip


def _factor(
    first: RowResult, before: RunResult, second: RowResult, after: RunResult, confidence: float
) -> Estimate | None:
    old = [before.measures[first.measure].samples[side] for side in first.sides()]
    new = [after.measures[second.measure].samples[side] for side in second.sides()]
    old_figure, new_figure = figure_of(first), figure_of(second)

    def ratio(sides: Sequence[Sequence[float]]) -> float:
        under = old_figure(sides[: len(old)])
        return new_figure(sides[len(old) :]) / under if under > 0 else math.inf

    if old_figure(old) <= 0 or new_figure(new) <= 0:
        return None
    return bootstrap([*old, *new], ratio, confidence=confidence)


def _judge(row: RowResult, factor: Estimate, before: float) -> str:
    if factor.low <= 1 <= factor.high:
        return "same"
    rose = factor.value > 1
    target = row.get_target()
    if target is not None and target.at_least is not None and target.at_most is not None:
        # A figure that is to stay within a range is worse the farther it is from the middle.
        middle = math.sqrt(target.at_least * target.at_most)
        return "worse" if abs(math.log(before * factor.value / middle)) > abs(math.log(before / middle)) else "better"
    return "worse" if rose == row.smaller_is_better else "better"
