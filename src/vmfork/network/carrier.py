"""What every port that leads somewhere has: its connections, each carried by a task, and its end."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.host.bound import Bound
from vmfork.host.dropped import close_dropped
from vmfork.owner import Owner
from vmfork.wire.frame import MOST_TUNNELS

if TYPE_CHECKING:
    from collections.abc import Coroutine


@guarded
class Carrier(Owner):
    """Base of a port at which somebody listens, here or in a guest, and of the connections that came there.

    It ends with `aclose()`, or its `async with` block, with its machine, and with its process. Connections end with it.
    """

    def __init__(self, what: str) -> None:
        """It accepts from now on: what `_accept_all` needs is there before."""
        self._bound = Bound(what)
        # As many as the guest takes, whatever it or who connects to it tells: others wait.
        self._places = asyncio.Semaphore(MOST_TUNNELS)
        self._carrying: set[asyncio.Task[None]] = set()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._accepting = asyncio.create_task(self._accept_all())

    def __del__(self) -> None:
        if self._is_open:
            close_dropped(self, self._bound, self._end)

    async def wait_closed(self) -> None:
        """It was closed, or its machine has ended; one that listens in the guest ends with a freeze, too."""
        await asyncio.shield(self._closed)

    async def aclose(self) -> None:
        """Nobody listens there any more, and its connections are reset. Closing again does nothing."""
        if not self._bound.is_here:
            if not self._bound.is_forked and not await self._bound.run_there(self.aclose):
                self._end()
            return
        tasks = [self._accepting, *self._carrying]
        self._end()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    @abstractmethod
    def _is_open(self) -> bool: ...

    @abstractmethod
    async def _accept_all(self) -> None:
        """Takes a place for each connection, and has it carried."""

    @abstractmethod
    def _end(self) -> None:
        """It has ended, without waiting for anything."""

    def _carry_on(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """The task that carries a connection, which has a place until then."""
        task = asyncio.create_task(work)
        self._carrying.add(task)
        task.add_done_callback(self._let_go)
        return task

    def _let_go(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        self._places.release()

    def _stop_carrying(self) -> None:
        """Whoever waits for the end is told. On the loop alone."""
        for task in (self._accepting, *self._carrying):
            task.cancel()
        if not self._closed.done():
            self._closed.set_result(None)
