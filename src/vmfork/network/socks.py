"""The proxy for SOCKS 5 (RFC 1928): connections by TCP, without a password, to names and addresses."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from enum import IntEnum
from ipaddress import ip_address
from typing import TYPE_CHECKING

from vmfork.network.caller import Hasty
from vmfork.network.dialing import Unreachable
from vmfork.network.gate import Denied
from vmfork.network.relay import relay
from vmfork.network.target import find_host

if TYPE_CHECKING:
    from vmfork.network.caller import Caller
    from vmfork.network.gate import Gate

VERSION = 5
_NO_PASSWORD, _NONE_ACCEPTABLE = 0, 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4


class _Reply(IntEnum):
    DONE = 0
    DENIED = 2
    UNREACHABLE = 4
    REFUSED = 5
    NO_SUCH_COMMAND = 7
    NO_SUCH_ADDRESS = 8


class _Told(Exception):
    """What the guest is told in place of a connection."""

    def __init__(self, reply: _Reply) -> None:
        super().__init__(reply.name)
        self.reply = reply


async def serve_socks(caller: Caller, gate: Gate, *, head_s: float) -> None:
    """The guest was connected as it asked, and both sides have ended; or it was told why not.

    What it asks is to be there within `head_s` seconds. Raises `Hasty` and `TimeoutError` where it is not.
    """
    async with asyncio.timeout(head_s):
        await _greet(caller)
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.timeout(head_s):
                host, port = await _read_request(caller)
            service = await stack.enter_async_context(gate.passage(host, port))
        except _Told as told:
            await _refuse(caller, told.reply)
        except Denied:
            await _refuse(caller, _Reply.DENIED)
        except Unreachable as error:
            await _refuse(caller, _Reply.REFUSED if error.refused else _Reply.UNREACHABLE)
        else:
            await _reply(caller, _Reply.DONE)
            await relay(caller, service, gate, host, port)


async def _greet(caller: Caller) -> None:
    version, count = await caller.read_exactly(2)
    if version != VERSION or _NO_PASSWORD not in await caller.read_exactly(count):
        await caller.write(bytes([VERSION, _NONE_ACCEPTABLE]))
        await caller.end()
        raise Hasty
    await caller.write(bytes([VERSION, _NO_PASSWORD]))


async def _read_request(caller: Caller) -> tuple[str, int]:
    version, command, _, kind = await caller.read_exactly(4)
    if version != VERSION:
        raise Hasty
    host = await _read_host(caller, kind)
    port = int.from_bytes(await caller.read_exactly(2))
    if command != _CONNECT:
        raise _Told(_Reply.NO_SUCH_COMMAND)
    if host is None or port == 0:
        raise _Told(_Reply.NO_SUCH_ADDRESS)
    return host, port


async def _read_host(caller: Caller, kind: int) -> str | None:
    if kind in (_IPV4, _IPV6):
        return str(ip_address(await caller.read_exactly(4 if kind == _IPV4 else 16)))
    if kind != _NAME:
        raise _Told(_Reply.NO_SUCH_ADDRESS)
    (length,) = await caller.read_exactly(1)
    text = (await caller.read_exactly(length)).decode("ascii", "replace")
    return find_host(f"[{text}]" if ":" in text else text)


async def _reply(caller: Caller, reply: _Reply) -> None:
    await caller.write(bytes([VERSION, reply, 0, _IPV4]) + bytes(6))


async def _refuse(caller: Caller, reply: _Reply) -> None:
    await _reply(caller, reply)
    await caller.end()
