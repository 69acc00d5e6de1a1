"""The programs of a live fork that clients of its parent had started, and that run on in it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.agent.process import GuestProcess


class Left:
    """Those that were found, whether they have ended or not. They are the machine's owner's, and end with it."""

    def __init__(self) -> None:
        self._taken: list[GuestProcess] = []
        self._taking = asyncio.Lock()

    async def take_all(self, agent: AgentClient) -> tuple[GuestProcess, ...]:
        """All of them, in the order in which they were started, as far as process ids tell."""
        async with self._taking:
            for program in sorted(await agent.list_left(), key=lambda each: each.pid):
                self._taken.append(await agent.take_left(program))
        return tuple(self._taken)
