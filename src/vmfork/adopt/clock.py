"""The guest's wall clock: set to the host's, and proven by what its readings leave possible."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmfork.errors import DeadlineExceeded, GuestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.agent.client import AgentClient
    from vmfork.wire.message import ClockReading

# When a machine is handed out, its wall clock is within this of the host's.
SKEW_LIMIT_S = 0.020
_LIMIT_NS = int(SKEW_LIMIT_S * 1e9)
# Readings before it is set anew: one that was late on its way there, and one that was late on its way back, tell more
# than either.
_READINGS = 4
# What two clocks may drift apart between readings: twice what Linux lets a clock be slewed by (500 ppm).
_DRIFT = 1e-3


@dataclass(frozen=True, slots=True)
class ClockProof:
    """The guest's wall clock was at most `bound_s` seconds from the host's; proving it took `took_s` seconds."""

    bound_s: float
    tries: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """How far ahead of the host's clock the guest's can be, as readings have it; the last was begun at `at_ns`."""

    least_ns: float
    most_ns: float
    at_ns: int

    @classmethod
    def of(cls, reading: ClockReading) -> Self:
        """It was read at some moment between the request and the answer."""
        return cls(reading.wall_ns - reading.received_ns, reading.wall_ns - reading.sent_ns, reading.sent_ns)

    @property
    def bound_ns(self) -> float:
        """The most it can be off."""
        return max(abs(self.least_ns), abs(self.most_ns))

    def narrowed(self, reading: ClockReading) -> Self:
        """What both leave possible. Where that is nothing, a clock was set meanwhile, and the reading alone holds."""
        other = self.of(reading)
        drift_ns = _DRIFT * abs(reading.received_ns - self.at_ns)
        least_ns = max(self.least_ns - drift_ns, other.least_ns)
        most_ns = min(self.most_ns + drift_ns, other.most_ns)
        return type(self)(least_ns, most_ns, other.at_ns) if least_ns <= most_ns else other


async def set_clock(
    agent: AgentClient, *, timeout_s: float, end: float | None = None, clock: Callable[[], int] = time.time_ns
) -> ClockProof:
    """The guest's wall clock is `clock` (ns since 1970), to within 20 ms, and measurements prove it.

    Mostly one does. On a busy host a round trip may take longer than that: then it is read several times, and set anew,
    ahead by half of the quickest round trip that there was. Raises `GuestError` when it was not proven within
    `timeout_s` seconds, or until `end` of the monotonic clock. The clock may be off then.
    """
    end = time.monotonic() + timeout_s if end is None else end
    tries, best_ns, quickest_ns, start = 0, float("inf"), 0, time.perf_counter()
    span: Span | None = None
    while (left := end - time.monotonic()) > 0:
        ahead_ns = quickest_ns // 2
        set_to = None if span is not None and tries % _READINGS else lambda by=ahead_ns: clock() + by
        tries += 1
        try:
            reading = await agent.clock(set_to, host_clock=clock, timeout_s=left)
        except DeadlineExceeded:
            break
        span = Span.of(reading) if span is None or set_to is not None else span.narrowed(reading)
        best_ns = min(best_ns, span.bound_ns)
        if span.bound_ns <= _LIMIT_NS:
            return ClockProof(span.bound_ns / 1e9, tries, time.perf_counter() - start)
        took_ns = max(0, reading.received_ns - reading.sent_ns)
        quickest_ns = took_ns if tries == 1 else min(quickest_ns, took_ns)
    measured = f"best of {tries}: {best_ns / 1e6:.1f} ms" if best_ns < float("inf") else "the guest did not answer"
    raise GuestError(
        f"within {timeout_s:g} s the guest's clock could not be proven to be within {SKEW_LIMIT_S * 1000:g} ms "
        f"of the host's ({measured})",
        hint="the host may be overloaded: fork fewer machines at once, or allow a longer fork_timeout_s",
    )


def skew_bound_s(reading: ClockReading) -> float:
    """The most the guest's clock can be off, as one reading has it."""
    return Span.of(reading).bound_ns / 1e9
