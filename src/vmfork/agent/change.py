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
        self._next: asyncio.Future[None] | None = None
        self._followers: set[Callable[[], None]] = set()

    async def next(self) -> None:
        """Something has changed since this was called."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        # Several may wait for the same change, and one of them be cancelled.
        await asyncio.shield(self._next)

    def follow(self, callback: Callable[[], None]) -> None:
        """`callback` is called at each change, until `leave`."""
        self._followers.add(callback)

    def leave(self, callback: Callable[[], None]) -> None:
        """`callback` is not called any more."""
        self._followers.discard(callback)

    def tell(self) -> None:
        """Whoever waits is woken, and whoever follows was called."""
        if self._next is not None:
            self._next.set_result(None)
        self._next = None
        for callback in tuple(self._followers):
            callback()
