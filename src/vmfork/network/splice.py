"""A socket of the host's and a connection to a guest, made one."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

from vmfork.agent.exchange import CHUNK_SIZE
from vmfork.errors import VMForkError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.agent.tunnel import GuestConnection

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger, socket(7)


async def serve(client: socket.socket, connect: Callable[[], Awaitable[GuestConnection]]) -> None:
    """The client was spliced with what `connect` gives. It is reset where that fails or is lost, and on cancel."""
    is_whole = False
    try:
        without_delay(client)
        connection = await connect()
        try:
            await splice(client, connection)
            is_whole = True
        finally:
            await connection.abort()  # behind both ends that changes nothing
    except (VMForkError, OSError):
        pass  # the client is told by the reset
    finally:
        if not is_whole:
            reset_on_close(client)


async def splice(client: socket.socket, connection: GuestConnection) -> None:
    """What either sent went to the other, until both had ended, or one was lost: then the other is reset.

    Closes neither.
    """
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_inwards(client, connection))
            both.create_task(_outwards(client, connection))
        await connection.wait_closed()
    except* (OSError, VMForkError):
        reset_on_close(client)
        await connection.abort()


def without_delay(client: socket.socket) -> None:
    """Small pieces are sent as they come."""
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def reset_on_close(client: socket.socket) -> None:
    """Closed, the socket tells its peer that the other side was lost. A Unix socket has no such word."""
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


async def _inwards(client: socket.socket, connection: GuestConnection) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(client, CHUNK_SIZE):
        await connection.write(data)
    await connection.write_eof()


async def _outwards(client: socket.socket, connection: GuestConnection) -> None:
    loop = asyncio.get_running_loop()
    while data := await connection.read(CHUNK_SIZE):
        await loop.sock_sendall(client, data)
    client.shutdown(socket.SHUT_WR)
