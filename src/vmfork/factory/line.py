"""Callers that wait for a machine, and machines that wait for a caller."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfork.factory.held import Held


class Line:
    """Callers that wait stand in line, first come, first served. While one waits, no machine is ready.

    Each machine is in one place at a time:
    ```
    starting -> ready -> leaving -> the caller's
       |          |         |-> ready again (the caller was cancelled), if it is parked
       +----------+---------+-> ending
    ```
    Nothing here waits, so no cancellation can come between two places (docs/decisions/0007).
    """

    def __init__(self) -> None:
        self.ready: deque[Held] = deque()
        self.leaving: set[Held] = set()
        self._places: deque[asyncio.Future[Held]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._places)

    @property
    def is_awaited(self) -> bool:
        """Whether a caller waits for the next machine."""
        return any(not place.done() for place in self._places)

    def take(self) -> Held | None:
        """The machine that was ready first, on its way to the caller."""
        if not self.ready:
            return None
        held = self.ready.popleft()
        self.leaving.add(held)
        return held

    def join(self) -> asyncio.Future[Held]:
        """The last place in line. Its result is a machine on its way to the caller, who must `leave` the place."""
        place: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
        self._places.append(place)
        return place

    def leave(self, place: asyncio.Future[Held]) -> None:
        with suppress(ValueError):
            self._places.remove(place)

    def offer(self, held: Held, *, first: bool = False) -> bool:
        """Whether a caller waited for the machine. Otherwise it is ready; with `first` it is the next to be taken."""
        while self._places:
            if not (place := self._places.popleft()).done():
                self.leaving.add(held)
                place.set_result(held)
                return True
        if first:
            self.ready.appendleft(held)
        else:
            self.ready.append(held)
        return False

    def dismiss(self, error: Exception) -> None:
        """Every waiting caller got `error`."""
        while self._places:
            if not (place := self._places.popleft()).done():
                place.set_exception(error)

    def clear(self) -> tuple[Held, ...]:
        """The machines that were ready or leaving; now they are in no place."""
        found = (*self.ready, *self.leaving)
        self.ready.clear()
        return found


def result_of(place: asyncio.Future[Held]) -> Held | None:
    """The machine that came to this place, if one did."""
    if place.done() and not place.cancelled() and place.exception() is None:
        return place.result()
    return None
