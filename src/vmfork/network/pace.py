"""How often something may begin."""

from __future__ import annotations


class Pace:
    """`burst` at once, and from then on `rate` a second; who comes earlier waits.

    It is told the time, and waits for nobody: that is its caller's.
    """

    def __init__(self, burst: int, rate: float) -> None:
        self._gap_s = 1 / rate
        self._ahead_s = burst / rate
        self._next = 0.0

    def take_turn(self, now: float) -> float:
        """How many seconds after `now`, of a clock that only goes on, it is the caller's turn; 0 when it is now."""
        self._next = max(self._next, now - self._ahead_s) + self._gap_s
        return max(0.0, self._next - now)
