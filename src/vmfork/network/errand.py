"""One request of a guest that is passed on to a host, on a connection of its own, and the answer to it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import h11

from vmfork.agent.exchange import CHUNK_SIZE
from vmfork.network.dialing import Unreachable
from vmfork.network.side import Side, without_hops
from vmfork.network.target import write_authority

if TYPE_CHECKING:
    import socket

    from vmfork.network.gate import Gate


async def run_errand(
    guest: Side, request: h11.Request, path: str, service: socket.socket, gate: Gate, *, host: str, port: int
) -> None:
    """The answer was passed back, whole. Where it came before all of the request was sent, the rest is not.

    Raises `h11.LocalProtocolError` for a request that is not sound, and `Unreachable` where the host has no answer.
    """
    loop = asyncio.get_running_loop()

    async def read() -> bytes:
        data = await loop.sock_recv(service, CHUNK_SIZE)
        gate.received_bytes += len(data)
        return data

    async def write(data: bytes) -> None:
        await loop.sock_sendall(service, data)
        gate.sent_bytes += len(data)

    there = Side(h11.CLIENT, read=read, write=write)
    headers = [(b"Host", write_authority(host, port).encode()), *without_hops(request.headers, b"host")]
    head = h11.Request(method=request.method, target=path, headers=[*headers, (b"Connection", b"close")])
    try:
        await there.send(head)
        await _converse(guest, there)
    except h11.RemoteProtocolError as error:
        raise Unreachable(f"{host} port {port} gave no answer: {error}") from None
    except OSError as error:
        raise Unreachable(f"{host} port {port} was lost: {error.strerror}") from None


async def _converse(guest: Side, there: Side) -> None:
    """Raises what was wrong with the content, without waiting for an answer to half of it."""
    sending, answering = (
        asyncio.create_task(_send_content(guest, there)),
        asyncio.create_task(_return_answer(guest, there)),
    )
    try:
        await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            await sending
        await answering
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


async def _send_content(guest: Side, there: Side) -> None:
    with suppress(OSError):  # a host that answers early may close for reading
        while not isinstance(event := await guest.next_event(), h11.EndOfMessage):
            await there.send(event)
        await there.send(h11.EndOfMessage())


async def _return_answer(guest: Side, there: Side) -> None:
    while not isinstance(event := await there.next_event(), h11.EndOfMessage):
        await guest.send(_for_guest(event))
    await guest.send(h11.EndOfMessage())


def _for_guest(event: h11.Event) -> h11.Event:
    """The event, as it goes to the guest: how long a message is, h11 says anew."""
    if isinstance(event, h11.ConnectionClosed):
        raise h11.RemoteProtocolError("it closed the connection")
    if not isinstance(event, (h11.Response, h11.InformationalResponse)):
        return event
    is_chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
    headers = without_hops(event.headers, b"transfer-encoding", *([b"content-length"] if is_chunked else []))
    return type(event)(status_code=event.status_code, headers=headers, reason=event.reason)
