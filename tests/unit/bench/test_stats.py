"""Figures and their intervals."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.bench.stats import bootstrap, quantile

NUMBERS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=30)


def median_ratio(sides):
    return statistics.median(sides[0]) / statistics.median(sides[1])


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1.0), (0.25, 2.0), (0.5, 3.0), (1.0, 5.0), (0.125, 1.5), (0.99, 4.96)]
)
def test_quantile_interpolates(share, value):
    assert quantile([5, 3, 1, 2, 4], share) == pytest.approx(value)


def test_no_samples_have_no_quantile():
    with pytest.raises(ValueError, match="no samples"):
        quantile([], 0.5)


@given(NUMBERS, NUMBERS)
def test_the_interval_is_ordered_and_within_what_can_be_drawn(first, second):
    found = bootstrap([first, second], median_ratio, resamples=100)
    assert found.low <= found.high
    assert min(first) / max(second) <= found.low * (1 + 1e-9)
    assert found.high <= max(first) / min(second) * (1 + 1e-9)
    assert found.value == median_ratio([first, second])


def test_the_same_samples_give_the_same_interval():
    sides = [[1.0, 2.0, 4.0, 3.0], [2.0, 2.5, 1.0]]
    assert bootstrap(sides, median_ratio) == bootstrap(sides, median_ratio)


def test_more_samples_narrow_the_interval():
    few, many = [1.0, 2.0, 3.0, 4.0] * 2, [1.0, 2.0, 3.0, 4.0] * 50
    narrow, wide = (bootstrap([side, [1.0]], median_ratio) for side in (many, few))
    assert narrow.high - narrow.low < wide.high - wide.low


def test_more_confidence_widens_it():
    sides = [[1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.1, 0.9]]
    sure, less = (bootstrap(sides, median_ratio, confidence=c) for c in (0.99, 0.5))
    assert sure.low <= less.low <= less.high <= sure.high
    assert sure.high - sure.low > less.high - less.low


def test_one_sample_has_no_width():
    found = bootstrap([[2.0], [1.0]], median_ratio)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
