"""Medians and how far they can be trusted: the bootstrap, without a library.

Samples of one machine's latencies are few, skewed and have outliers, so nothing here assumes a distribution.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESAMPLES = 2000
CONFIDENCE = 0.95
# The same samples give the same interval.
_SEED = 20_240_607


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and the interval that it lies in with the confidence asked for."""

    value: float
    low: float
    high: float


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of `values` lie at or below, interpolated between neighbours."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "p50": lambda values: quantile(values, 0.5),
    "p99": lambda values: quantile(values, 0.99),
}


def bootstrap(
    sides: Sequence[Sequence[float]],
    figure: Callable[[Sequence[Sequence[float]]], float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Estimate:
    """`figure` of the sides, and the percentile interval of what it would be had other samples been drawn.

    Each side is resampled on its own. A side with one sample gives no width: the interval says only what the others do.
    """
    draw = random.Random(_SEED)  # noqa: S311 - statistics, not secrets
    drawn = sorted(figure([draw.choices(side, k=len(side)) for side in sides]) for _ in range(resamples))
    tail = (1 - confidence) / 2
    return Estimate(figure(sides), quantile(drawn, tail), quantile(drawn, 1 - tail))
