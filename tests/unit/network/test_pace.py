"""How often connections out of a machine begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.network.gate import Gate
from vmfork.network.pace import Pace


def test_two_hundred_begin_at_once_and_fifty_a_second_from_then_on() -> None:
    pace = Gate("all")._pace
    now = 1000.0
    assert [pace.take_turn(now) for _ in range(200)] == [0.0] * 200
    waits = [pace.take_turn(now) for _ in range(100)]
    assert waits == pytest.approx([number / 50 for number in range(1, 101)])
    # A second behind the last of them, as many as a second has begin at once.
    later = [pace.take_turn(now + 3.0) for _ in range(60)]
    assert later == pytest.approx([0.0] * 50 + [number / 50 for number in range(1, 11)], abs=1e-6)


def test_who_was_away_for_long_has_no_more_than_the_burst() -> None:
    pace = Pace(3, 1.0)
    for now in (10.0, 1e6):
        assert [pace.take_turn(now) for _ in range(5)] == [0.0, 0.0, 0.0, 1.0, 2.0]


@given(st.lists(st.floats(0, 5), max_size=60))
def test_in_no_second_more_begin_than_the_burst_and_the_rate(gaps: list[float]) -> None:
    pace, now, begun = Pace(3, 4.0), 50.0, []
    for gap in gaps:
        now += gap
        begun.append(now + pace.take_turn(now))
    assert begun == sorted(begun)
    for first in begun:
        assert sum(first <= each < first + 0.999 for each in begun) <= 3 + 4
