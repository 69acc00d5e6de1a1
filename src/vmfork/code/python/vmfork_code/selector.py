"""What a server waits for."""

from __future__ import annotations

import select
import selectors
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Selector(selectors.EpollSelector):
    """Also tells of the ends of sockets that others read: what comes on those wakes nobody here."""

    def __init__(self) -> None:
        super().__init__()
        self._ends = select.epoll()
        self._on_end: dict[int, Callable[[], None]] = {}
        self.register(self._ends.fileno(), selectors.EVENT_READ, self._tell_ends)

    def watch_end(self, fd: int, on_end: Callable[[], None]) -> None:
        """`on_end` is called once when the other side sends nothing more, or is lost."""
        self._ends.register(fd, select.EPOLLRDHUP)
        self._on_end[fd] = on_end

    def leave_end(self, fd: int) -> None:
        """It is not called any more."""
        if self._on_end.pop(fd, None) is not None:
            with suppress(OSError):
                self._ends.unregister(fd)

    def _tell_ends(self, _mask: int) -> None:
        for fd, _ in self._ends.poll(0):
            on_end = self._on_end.get(fd)
            self.leave_end(fd)
            if on_end is not None:
                on_end()
