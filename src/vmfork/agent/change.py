"""The next thing to happen, for whoever waits for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Change:
    """What changes now and then: `next` waits until `tell` is called. Nobody need wait.

    Who follows is called by `tell` itself, without a turn of the event loop between.
    """

    def __init__(self) -> None:
        # In the order in which they came.
        self._waiting: dict[asyncio.Future[None], None] = {}
        self._followers: set[Callable[[], None]] = set()

    async def next(self) -> None:
        """Something has changed since this was called."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)

    def follow(self, callback: Callable[[], None]) -> None:
        """`callback` is called at each change, until `leave`."""
        self._followers.add(callback)

    def leave(self, callback: Callable[[], None]) -> None:
        """`callback` is not called any more."""
        self._followers.discard(callback)

    def tell(self) -> None:
        """Whoever waits is woken, and whoever follows was called."""
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():  # one is that was cancelled, and was not resumed yet
                waiter.set_result(None)
        for callback in tuple(self._followers):
            callback()
