"""Ports of a guest that lead out of it: the proxy, and those of single hosts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.agent.tunnel import tunnel_of
from vmfork.errors import VMForkError
from vmfork.network.caller import Caller, Hasty
from vmfork.network.dialing import Unreachable
from vmfork.network.entrance import Entrance
from vmfork.network.gate import Denied
from vmfork.network.relay import relay
from vmfork.network.socks import serve_socks
from vmfork.network.web import WebProxy

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.agent.tunnel import Listening
    from vmfork.network.gate import Gate

# What a program asks for is there within this, from when its connection stands or its last request was answered.
HEAD_LIMIT_S = 30.0
_SOCKS_4, _SOCKS_5 = b"\x04", b"\x05"


class _WayOut(Entrance):
    """Serves each call until both sides have ended. Where that fails, it is reset behind what came before."""

    async def _carry(self, number: int) -> None:
        with suppress(VMForkError):
            connection = await self._attach(number)
            try:
                with suppress(OSError, Denied, Unreachable, Hasty):  # TimeoutError is an OSError
                    await self._serve(Caller(connection))
                # A reset that overtakes them in the agent takes the last bytes of a host that was lost.
                await tunnel_of(connection).settle()
            finally:
                await connection.abort()  # behind both ends that changes nothing

    async def _serve(self, caller: Caller) -> None:
        raise NotImplementedError


class Proxy(_WayOut):
    """A port that speaks HTTP and SOCKS 5, which are told apart by what a program says first."""

    def __init__(
        self, agent: AgentClient, guest_port: int, *, listening: Listening, gate: Gate, head_s: float = HEAD_LIMIT_S
    ) -> None:
        self._gate = gate
        self._head_s = head_s
        super().__init__(agent, guest_port, listening=listening, what="the proxy of a guest")

    async def _serve(self, caller: Caller) -> None:
        async with asyncio.timeout(self._head_s):
            first = await caller.peek()
        if first[:1] == _SOCKS_5:
            await serve_socks(caller, self._gate, head_s=self._head_s)
        elif first[:1] != _SOCKS_4:
            await WebProxy(caller, self._gate, head_s=self._head_s).serve()


class Passage(_WayOut):
    """A port that leads to one port of one host."""

    def __init__(self, agent: AgentClient, guest_port: int, *, listening: Listening, gate: Gate, host: str) -> None:
        self._gate = gate
        self._host = host
        super().__init__(agent, guest_port, listening=listening, what=f"the way to {host}")

    async def _serve(self, caller: Caller) -> None:
        async with self._gate.passage(self._host, self._port) as service:
            await relay(caller, service, self._gate, self._host, self._port)
