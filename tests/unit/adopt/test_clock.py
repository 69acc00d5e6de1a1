"""The guest's clock is proven by what its readings leave possible, and by nothing else."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.adopt.clock import SKEW_LIMIT_S, Span, set_clock, skew_bound_s
from vmfork.wire.message import ClockReading

S = 10**9
MS = 10**6


class Host:
    """A host's clock that a guest's messages move on, and a guest whose own is `off_ns` ahead.

    `legs` are the times that a request and its answer take, in ms, one pair after the other; the last for ever.
    """

    def __init__(self, *legs: tuple[float, float]) -> None:
        self.now_ns = 1_000 * S
        self.off_ns = 3_600 * S
        self.legs = list(legs)

    def clock(self) -> int:
        return self.now_ns

    async def ask(self, set_to, *, host_clock, timeout_s) -> ClockReading:
        there, back = self.legs.pop(0) if len(self.legs) > 1 else self.legs[0]
        sent, wanted = host_clock(), None if set_to is None else set_to()
        self.now_ns += int(there * MS)
        if wanted is not None:
            self.off_ns = wanted - self.now_ns
        wall = self.now_ns + self.off_ns
        self.now_ns += int(back * MS)
        return ClockReading(wall, 1, sent, host_clock())


async def prove(host: Host):
    class Agent:
        clock = staticmethod(host.ask)

    proof = await set_clock(Agent, timeout_s=5, end=time.monotonic() + 5, clock=host.clock)
    assert abs(host.off_ns) / S <= proof.bound_s <= SKEW_LIMIT_S
    return proof


@pytest.mark.parametrize(
    ("legs", "tries"),
    [
        ([(1, 1)], 1),
        ([(0, 19)], 1),
        ([(12, 12)], 5),  # each round trip takes too long, and it is set ahead by half of one
        ([(19, 19)], 5),
        ([(2, 30), (30, 2)], 2),  # two that were late, each on another way
        ([(500, 0), (500, 0), (1, 1), (500, 0), (1, 1)], 5),  # set too late to be right
    ],
)
async def test_a_clock_is_proven_where_round_trips_take_longer_than_it_may_be_off(legs, tries) -> None:
    assert (await prove(Host(*legs))).tries == tries


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=12))
async def test_what_is_proven_is_true(legs) -> None:
    await prove(Host(*legs, (0, 0)))


@given(
    st.integers(-S, S),
    st.lists(st.tuples(st.integers(0, S), st.integers(0, S), st.integers(0, S)), min_size=1, max_size=20),
    st.floats(-0.5e-3, 0.5e-3),
)
def test_a_span_has_the_truth_in_it_while_the_clocks_drift(off_ns, readings, drift) -> None:
    now, span = 0, None
    for pause, there, back in readings:
        sent = now = now + pause
        now += there
        truth = off_ns + drift * now
        wall = now + int(truth)
        reading = ClockReading(wall, 1, sent, now := now + back)
        span = Span.of(reading) if span is None else span.narrowed(reading)
        assert span.least_ns - 1 <= truth <= span.most_ns + 1


def test_a_clock_that_was_set_meanwhile_is_known_by_its_last_reading_alone() -> None:
    before, after = ClockReading(10 * S, 1, 9 * S, 11 * S), ClockReading(100 * S, 1, 12 * S, 13 * S)
    assert Span.of(before).narrowed(after) == Span.of(after)


@pytest.mark.parametrize(
    ("wall_ns", "bound_s"), [(100 * S, 1.0), (101 * S, 1.0), (99 * S, 2.0), (103 * S, 3.0), (100 * S + S // 2, 0.5)]
)
def test_the_bound_is_the_worst_of_both_ends_of_the_round_trip(wall_ns, bound_s) -> None:
    assert skew_bound_s(ClockReading(wall_ns, 1, 100 * S, 101 * S)) == pytest.approx(bound_s)
