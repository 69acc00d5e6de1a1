"""The next thing to happen, for whoever waits for it."""

from __future__ import annotations

import asyncio


class Change:
    """What changes now and then: `next` waits until `tell` is called. Nobody need wait."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    async def next(self) -> None:
        """Something has changed since this was called."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        # Several may wait for the same change, and one of them be cancelled.
        await asyncio.shield(self._next)

    def tell(self) -> None:
        """Whoever waits is woken."""
        if self._next is not None:
            self._next.set_result(None)
        self._next = None
