"""How a base has been doing: one that keeps failing is left alone for a while."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# After this many failures in a row, each after its retry, a base rests this long.
FAILURES, REST_S = 3, 60.0


@dataclass(slots=True)
class Health:
    """Failures in a row of one base, and until when it rests.

    `limit` of them begin a rest. `now` is a clock in seconds.
    """

    limit: int = FAILURES
    now: Callable[[], float] = time.monotonic
    failures: int = 0
    last_error: str = ""
    _rests_until: float = field(default=float("-inf"))

    @property
    def is_quarantined(self) -> bool:
        return self.now() < self._rests_until

    def note_success(self) -> None:
        self.failures = 0

    def note_failure(self, error: Exception) -> None:
        """After a rest one more failure is enough for the next one."""
        self.failures += 1
        self.last_error = str(error)
        if self.failures >= self.limit:
            self._rests_until = self.now() + REST_S
