"""A program in the guest and what it was let through to: what either says goes to the other."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from vmfork.agent.exchange import CHUNK_SIZE
from vmfork.network.hello import HANDSHAKE, ClientHello

if TYPE_CHECKING:
    from vmfork.network.caller import Caller
    from vmfork.network.gate import Gate

# A client that was connected says hello within this, if it speaks TLS at all.
_HELLO_LIMIT_S = 30.0


async def relay(caller: Caller, service: socket.socket, gate: Gate, host: str, port: int) -> None:
    """Both have ended. What the guest says first is not passed on where it asks, by TLS, for another host than `host`.

    Raises `Denied` then, and `OSError` or `VMForkError` when either was lost.
    """
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_outwards(caller, service, gate, host, port))
            both.create_task(_inwards(caller, service, gate))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    await caller.connection.wait_closed()


async def _outwards(caller: Caller, service: socket.socket, gate: Gate, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    data = await _read_first(caller, gate, host, port)
    while data:
        await loop.sock_sendall(service, data)
        gate.sent_bytes += len(data)
        data = await caller.read()
    service.shutdown(socket.SHUT_WR)


async def _inwards(caller: Caller, service: socket.socket, gate: Gate) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(service, CHUNK_SIZE):
        await caller.write(data)
        gate.received_bytes += len(data)
    await caller.connection.write_eof()


async def _read_first(caller: Caller, gate: Gate, host: str, port: int) -> bytes:
    """What the guest said first, which may be passed on: whole, where it is the hello of a TLS client."""
    data = await caller.read()
    if gate.policy == "all" or data[:1] != HANDSHAKE:
        return data
    hello = ClientHello()
    hello.feed(data)
    async with asyncio.timeout(_HELLO_LIMIT_S):
        while not hello.is_read and (more := await caller.read()):
            hello.feed(more)
            data += more
    if not hello.is_sound:
        raise gate.deny(host, port, "what began as TLS is none that can be read")
    if hello.name is not None and not gate.allows_server(hello.name, host, port):
        raise gate.deny(host, port, f"a TLS client asked for {hello.name} at {host}")
    return data
