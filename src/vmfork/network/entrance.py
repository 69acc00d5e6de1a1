"""A port of a guest at which somebody of the host takes calls."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING

from vmfork.errors import VMForkError
from vmfork.network.carrier import Carrier

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.agent.tunnel import GuestConnection, Listening

# The agent says at once that it has let go of the port, where its guest runs.
_FREE_LIMIT_S = 5.0


class Entrance(Carrier):
    """Base of a port in the guest whose calls are carried here. It ends with its machine, and with a freeze."""

    def __init__(self, agent: AgentClient, guest_port: int, *, listening: Listening, what: str) -> None:
        self._port = guest_port
        self._agent = agent
        self._listening = listening
        super().__init__(what)

    async def aclose(self) -> None:
        """Nobody listens there any more, and its connections are reset. Closing again does nothing.

        The port of the guest is free for others by then, also for another client's, unless the guest stands still.
        """
        await super().aclose()
        if self._bound.is_here:
            await asyncio.wait([self._listening.reply], timeout=_FREE_LIMIT_S)

    @property
    def _is_open(self) -> bool:
        return not self._closed.done()

    def _end(self) -> None:
        if self._closed.done() or self._bound.is_stranded:
            return
        self._stop_carrying()
        self._agent.abandon(self._listening)

    async def _accept_all(self) -> None:
        try:
            while True:
                await self._places.acquire()
                self._carry_on(self._carry(await self._listening.next_caller()))
        except VMForkError:
            self._end()

    async def _attach(self, number: int) -> GuestConnection:
        """The call of that number."""
        return await self._agent.attach(self._listening, number, port=self._port)

    @abstractmethod
    async def _carry(self, number: int) -> None:
        """Whoever called was served, or is reset."""
