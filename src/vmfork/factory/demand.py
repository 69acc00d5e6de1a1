"""How many machines a pool is to hold, as the rate at which they are taken goes up and down."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A pool holds what the busiest moment of this long took: bursts come again, and a parked machine costs memory alone.
MEMORY_S = 300.0


@dataclass(slots=True)
class Demand:
    """Between `least` and `most` machines: one more than were ever taken, of late, while one was being made.

    `now` is a clock in seconds.
    """

    least: int
    most: int
    now: Callable[[], float] = time.monotonic
    _taken: deque[float] = field(default_factory=deque)
    # Each burst with when it was, those left out that a later one was as large as: the first is the largest.
    _bursts: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def size(self) -> int:
        """How many are to be held now."""
        while self._bursts and self._bursts[0][0] < self.now() - MEMORY_S:
            self._bursts.popleft()
        burst = self._bursts[0][1] + 1 if self._bursts else 0
        return max(self.least, min(burst, self.most))

    def note_take(self, *, make_s: float) -> None:
        """A machine was asked for. `make_s` is how long one that is made in its place takes."""
        now = self.now()
        self._taken.append(now)
        while self._taken[0] < now - make_s:
            self._taken.popleft()
        while self._bursts and self._bursts[-1][1] <= len(self._taken):
            self._bursts.pop()
        self._bursts.append((now, len(self._taken)))
