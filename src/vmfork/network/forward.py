"""A port of the host that leads to a port of a guest."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.border import guarded
from vmfork.host.inherited import close_in_children
from vmfork.network.address import bound_address, listen
from vmfork.network.carrier import Carrier
from vmfork.network.splice import serve

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vmfork.agent.client import AgentClient
    from vmfork.network.address import HostAddress

    Note = Callable[[str], Callable[[], None]]

# How long a listener rests that could not take a connection: the process has no descriptor left, or the host no memory.
_REST_S = 0.5


def _note_nothing(_address: str) -> Callable[[], None]:
    return lambda: None


@guarded
class Forward(Carrier):
    """A port, or a Unix socket, of the host that leads to a port of the guest.

    It ends with `aclose()`, or its `async with` block, with its machine, and with its process. Connections end with it.
    """

    guest_port: int
    """The port in the guest."""
    host: str
    """The address that it listens at; empty for a Unix socket."""
    host_port: int
    """The port that it listens at; 0 for a Unix socket."""
    path: str
    """The path of the Unix socket that it listens at; empty for a port."""

    def __init__(
        self, agent: AgentClient, guest_port: int, *, listener: socket.socket, address: HostAddress, note: Note
    ) -> None:
        self.guest_port = guest_port
        self.host = address.host
        self.host_port = address.port
        self.path = "" if address.path is None else str(address.path)
        self._agent = agent
        self._address = address
        self._listener = listener
        self._inode = _inode_of(self.path)
        self._forget = note(self.address)
        super().__init__(f"the forwarding of {address}")
        agent.closed.add_done_callback(self._end_with_machine)

    def __repr__(self) -> str:
        return f"<Forward {self._address} to port {self.guest_port}{'' if self._is_open else ', closed'}>"

    @property
    def address(self) -> str:
        """Where it listens, as it is given: `127.0.0.1:8080`, `[::1]:8080`, or a path."""
        return str(self._address)

    @property
    def _is_open(self) -> bool:
        return self._listener.fileno() >= 0

    def _leave_machine(self) -> None:
        self._bound.loop.remove_reader(self._listener)
        self._agent.closed.remove_done_callback(self._end_with_machine)
        for task in (self._accepting, *self._carrying):
            task.cancel()

    def _join_machine(self, agent: AgentClient) -> None:
        self._agent = agent
        self._accepting = asyncio.create_task(self._accept_all())
        agent.closed.add_done_callback(self._end_with_machine)

    def _end_with_machine(self, _closed: object) -> None:
        self._end()

    def _end(self) -> None:
        if not self._is_open:
            return
        if not self._bound.is_stranded:
            # Now: a cancelled accept does it a turn later, when its descriptor may be another socket's.
            self._bound.loop.remove_reader(self._listener)
            self._agent.closed.remove_done_callback(self._end_with_machine)
            self._stop_carrying()
        # A path may lead to the socket of somebody else by now.
        if self.path and _inode_of(self.path) == self._inode:
            with suppress(OSError):
                os.unlink(self.path)
        self._listener.close()
        self._forget()

    async def _accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                client, _ = await loop.sock_accept(self._listener)
            except ConnectionAbortedError:
                self._places.release()
            except OSError:
                self._places.release()
                await asyncio.sleep(_REST_S)
            except asyncio.CancelledError:
                self._places.release()
                raise
            else:
                self._take(close_in_children(client))

    def _take(self, client: socket.socket) -> None:
        """The client is served, and closed then; also where that is cancelled before its first step."""
        self._carry_on(self._carry(client)).add_done_callback(lambda _task: client.close())

    async def _carry(self, client: socket.socket) -> None:
        """The client was served, and is to be closed: reset, where the guest's port refused it or was lost."""
        await serve(client, lambda: self._agent.begin_tunnel(self.guest_port))


def start_forward(agent: AgentClient, guest_port: int, address: HostAddress, *, note: Note = _note_nothing) -> Forward:
    """Who connects to `address` is connected to the guest's port from now on. Raises `HostError`.

    `note` is told the address, and gives what is called when nobody listens there any more.
    """
    listener = listen(address)
    return Forward(agent, guest_port, listener=listener, address=bound_address(listener, address), note=note)


def hold(port: Forward) -> None:
    """Its machine is about to end, and another to stand in its place: who connects waits for that. Connections end."""
    if port._is_open:  # noqa: SLF001 - hidden from callers of the library alone, as below
        port._leave_machine()  # noqa: SLF001


def lead_to(port: Forward, agent: AgentClient) -> None:
    """It leads to the same port of the machine of `agent` from now on."""
    if port._is_open:  # noqa: SLF001
        port._join_machine(agent)  # noqa: SLF001


def drop(port: Forward) -> None:
    """Nothing stands in the place of its machine: it has ended."""
    port._end()  # noqa: SLF001


def _inode_of(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        info = os.lstat(path)
        return info.st_dev, info.st_ino
    return None
