"""Figures and verdicts as people read them: the same words in the terminal and in the documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.suite.result import RowResult


def format_figure(value: float, unit: str) -> str:
    """`value` with three digits that say something: `1.04`, `71.3 ms`, `0.42 %`."""
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    text = f"{value:,.{digits}f}" if value else "0"
    return f"{text} {unit}".rstrip() if unit else text


def format_value(row: RowResult) -> str:
    return "not run" if row.value is None else format_figure(row.value, row.unit)


def format_interval(row: RowResult) -> str:
    """The bootstrap interval: `1.01 to 1.07`."""
    if row.low is None or row.high is None:
        return ""
    return f"{format_figure(row.low, '')} to {format_figure(row.high, '')}"


def format_target(row: RowResult) -> str:
    target = row.get_target()
    return f"{target} {row.unit}".rstrip() if target else ""


def format_verdict(row: RowResult) -> str:
    """`reached`, `missed by 12 %`, with what the interval says against it; or why it was not run."""
    if row.value is None:
        return f"not run: {row.reason}"
    target = row.get_target()
    if target is None or row.low is None or row.high is None:
        return ""
    sure = target.is_met_by(row.low) == target.is_met_by(row.high) == target.is_met_by(row.value)
    doubt = "" if sure else " (within noise of it)"
    return f"missed by {row.missed_by:.1%}{doubt}" if row.verdict == "missed" else f"reached{doubt}"
