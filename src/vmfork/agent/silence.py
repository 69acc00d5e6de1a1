"""A guest that says nothing any more, while somebody waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Silence:
    """Measures how long nothing was heard. `ask` is called after `limit_s` seconds, `give_up` after as long again.

    It measures from `expect`, which is called with every request, until `is_awaited` says that no answer is awaited. A
    machine that nobody asks costs no timer.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        is_awaited: Callable[[], bool],
        ask: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._limit_s = limit_s
        self._is_awaited = is_awaited
        self._ask = ask
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._heard_at = 0.0
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None

    def expect(self) -> None:
        """An answer is awaited from now on."""
        if self._timer is None:
            self.hear()
            self._timer = self._loop.call_later(self._limit_s, self._look)

    def hear(self) -> None:
        """The guest said something."""
        self._heard_at = self._loop.time()
        self._asked = False

    def stop(self) -> None:
        """Neither callback is called any more, until `expect`."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._is_awaited():
            return
        left_s = self._heard_at + self._limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        elif self._asked:
            self._give_up()
        else:
            self._asked = True
            self._timer = self._loop.call_later(self._limit_s, self._look)
            self._ask()
