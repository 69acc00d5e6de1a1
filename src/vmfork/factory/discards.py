"""Machines that a pool gives up."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfork.factory.held import Held


class Discards:
    """Owner of machines that are ending, in the background: a caller that takes one does not wait for another's end.

    `reasons` counts why a pool gave machines up.
    """

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def end(self, held: Held, reason: str = "") -> None:
        """The machine is ending. It is counted when there is a `reason`."""
        if reason:
            self.reasons[reason] += 1
        task = asyncio.create_task(held.base_vm.aclose())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """All machines have ended, those too that were added meanwhile. On cancel they still end."""
        while self._tasks:
            await asyncio.wait(self._tasks)
