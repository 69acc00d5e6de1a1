"""A port of a guest that leads to a port of another guest."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.errors import VMForkError
from vmfork.network.entrance import Entrance
from vmfork.network.splice import join

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.agent.client import AgentClient
    from vmfork.agent.tunnel import GuestConnection, Listening

    Dial = Callable[[], Awaitable[GuestConnection]]

_LIMIT_S = 30.0


class Passage(Entrance):
    """A port at an address of a guest's loopback; whoever connects there has what `dial` gives. Ends with its guest."""

    def __init__(self, agent: AgentClient, port: int, *, listening: Listening, dial: Dial) -> None:
        self._dial = dial
        super().__init__(agent, port, listening=listening, what=f"the passage at port {port}")

    async def _carry(self, number: int) -> None:
        """Whoever called was served, or is reset where the other guest refused or was lost."""
        with suppress(VMForkError):
            connection = await self._attach(number)
            try:
                await self._lead_on(connection)
            finally:
                await connection.abort()  # behind both ends that changes nothing

    async def _lead_on(self, connection: GuestConnection) -> None:
        onward = await self._dial()
        try:
            await join(connection, onward)
        finally:
            await onward.abort()


async def start_passage(agent: AgentClient, address: str, port: int, *, dial: Dial) -> Passage:
    """Whoever connects to the port at that address of the guest has a connection that `dial` gives, from now on.

    Raises `PortError` when somebody listens there.
    """
    return Passage(agent, port, listening=await agent.listen(port, address=address, timeout_s=_LIMIT_S), dial=dial)
