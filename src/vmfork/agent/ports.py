"""The requests about ports of the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.deadline import deadline
from vmfork.agent.tunnel import GuestConnection, Tunnel
from vmfork.errors import GuestError, PortError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from vmfork.agent.exchange import Explain
    from vmfork.wire.message import Failure

_TOO_OLD = "build the image and its templates again with this vmfork"
_HINTS = {
    ErrorCode.REFUSED: "wait for who listens there: vm.wait_for_port(port)",
    ErrorCode.BUSY: "256 connections may be open at a time: close some",
}


def _explain(port: int) -> Explain:
    def explain(failure: Failure) -> GuestError:
        if failure.code == ErrorCode.UNSUPPORTED:
            return GuestError("the agent in this machine has no ports", hint=_TOO_OLD)
        hint = next((hint for code, hint in _HINTS.items() if code == failure.code), "")
        return PortError(port, failure.code, failure.message, hint=hint)

    return explain


class PortRequests(Connection):
    """Ports of the guest, on its own loopback: 127.0.0.1, and ::1 where nothing listens there."""

    async def open_tunnel(self, port: int, *, timeout_s: float | None = 30.0) -> GuestConnection:
        """A connection to who listens at `port` in the guest. Raises `PortError` when nobody does.

        With 256 connections open, it waits until one of them has ended.
        """
        tunnel = Tunnel(self._new_stream(), grant=self.grant, explain=_explain(port))
        request = message.connect_request(tunnel.stream, port)
        try:
            async with deadline(f"connecting to port {port} of the guest", timeout_s):
                await self._begin_in_turn(tunnel, lambda _: request)
                await tunnel.connected
        except BaseException as error:
            self.abandon(tunnel)
            if isinstance(error, Exception):
                self.end_with_nonsense(error)
            raise
        return GuestConnection(self, tunnel, port=port)

    async def check_ports(self, *, timeout_s: float | None = 30.0) -> None:
        """Raises `GuestError` when the agent is older than connections to ports."""
        # No port: an agent that knows the request calls it invalid.
        exchange = self._new_exchange(_explain(0))
        request = message.connect_request(exchange.stream, 0)
        try:
            await self._ask(exchange, request, "asking the machine's agent for ports", timeout_s)
        except PortError:
            return
