"""A port of a guest that leads to a service of the host."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.errors import VMForkError
from vmfork.host.inherited import close_in_children
from vmfork.network.address import family_of
from vmfork.network.entrance import Entrance
from vmfork.network.splice import splice, without_delay

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.agent.tunnel import Listening
    from vmfork.network.address import HostAddress

_CONNECT_LIMIT_S = 30.0


@guarded
class Reverse(Entrance):
    """A port of the guest's loopback that leads to a service of the host.

    It ends with `aclose()`, or its `async with` block, with its machine, and with its process. Connections end with it.
    """

    guest_port: int
    """The port in the guest."""
    address: str
    """The service of the host, as it was given: `127.0.0.1:5432`, or a path."""

    def __init__(self, agent: AgentClient, guest_port: int, *, listening: Listening, address: HostAddress) -> None:
        self.guest_port = guest_port
        self.address = str(address)
        self._address = address
        super().__init__(agent, guest_port, listening=listening, what=f"the way to {address}")

    def __repr__(self) -> str:
        return f"<Reverse of port {self.guest_port} to {self.address}{', closed' if self._closed.done() else ''}>"

    async def _carry(self, number: int) -> None:
        """Whoever called was served, or is reset where the service of the host refused or was lost."""
        service = await self._connect()
        with suppress(VMForkError, OSError), service or nullcontext():
            connection = await self._attach(number)
            try:
                if service is not None:
                    await splice(service, connection)
            finally:
                await connection.abort()  # behind both ends that changes nothing

    async def _connect(self) -> socket.socket | None:
        """The service. `None` where it refuses, or this process has no descriptor left."""
        address = self._address
        where = (address.host, address.port) if address.path is None else str(address.path)
        with suppress(OSError), ExitStack() as on_failure:  # TimeoutError is one
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            service = on_failure.enter_context(socket.socket(family_of(address), kind))
            async with asyncio.timeout(_CONNECT_LIMIT_S):
                await asyncio.get_running_loop().sock_connect(service, where)
            without_delay(service)
            on_failure.pop_all()
            return close_in_children(service)
        return None


async def start_reverse(
    agent: AgentClient, guest_port: int, address: HostAddress, *, at: str = "", timeout_s: float
) -> Reverse:
    """Whoever connects to the guest's port is connected to `address` from now on.

    The port is one of 127.0.0.1, or of the address `at` of the guest's loopback. Raises `PortError` when somebody
    listens there in the guest.
    """
    listening = await agent.listen(guest_port, address=at, timeout_s=timeout_s)
    return Reverse(agent, guest_port, listening=listening, address=address)
