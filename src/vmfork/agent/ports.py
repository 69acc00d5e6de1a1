"""The requests about ports of the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.connection import Connection
from vmfork.agent.deadline import deadline
from vmfork.agent.tunnel import WINDOW, GuestConnection, Listening, Tunnel
from vmfork.errors import GuestError, PortError
from vmfork.wire import message
from vmfork.wire.code import ErrorCode

if TYPE_CHECKING:
    from asyncio import Future

    from vmfork.agent.exchange import Exchange, Explain
    from vmfork.wire.message import Failure

_TOO_OLD = "build the image and its templates again with this vmfork"
_HINTS = {
    ErrorCode.REFUSED: "wait for who listens there: vm.wait_for_port(port)",
    ErrorCode.EXISTS: "take another port of the guest, or end who listens there",
    ErrorCode.BUSY: "256 connections may be open at a time: close some",
}


def _explain(port: int) -> Explain:
    def explain(failure: Failure) -> GuestError:
        if failure.code == ErrorCode.UNSUPPORTED:
            return GuestError("the agent in this machine has no ports", hint=_TOO_OLD)
        if failure.code == ErrorCode.INVALID and 0 < port < 65_536:  # then it is the window
            return GuestError("the agent in this machine is older than the ports of this vmfork", hint=_TOO_OLD)
        hint = next((hint for code, hint in _HINTS.items() if code == failure.code), "")
        return PortError(port, failure.code, failure.message, hint=hint)

    return explain


def _explain_named(port: int) -> Explain:
    """As for any port. What else is sent is checked before: what is invalid to the agent is the address itself."""

    def explain(failure: Failure) -> Exception:
        if failure.code == ErrorCode.INVALID:
            return GuestError("the agent in this machine listens at 127.0.0.1 alone", hint=_TOO_OLD)
        return _explain(port)(failure)

    return explain


def _explain_path(port: int) -> Explain:
    """As for any port, but that an agent which knows no paths calls one invalid."""

    def explain(failure: Failure) -> Exception:
        if failure.code == ErrorCode.INVALID:
            return PortError(port, failure.code, failure.message)
        return _explain(port)(failure)

    return explain


class PortRequests(Connection):
    """Ports of the guest, on its own loopback: 127.0.0.1, and ::1 where nothing listens there."""

    async def open_tunnel(self, port: int, *, timeout_s: float | None = 30.0) -> GuestConnection:
        """A connection to who listens at `port` in the guest. Raises `PortError` when nobody does.

        With 256 connections open, it waits until one of them has ended.
        """
        tunnel = Tunnel(self._new_stream(), line=self, explain=_explain(port))
        request = message.connect_request(tunnel.stream, port, WINDOW)
        await self._stand_up(tunnel, request, tunnel.connected, f"connecting to port {port} of the guest", timeout_s)
        return GuestConnection(tunnel, port=port)

    async def open_local(self, path: str, *, port: int, timeout_s: float | None = 30.0) -> GuestConnection:
        """A connection to the Unix socket at `path`, of who listens at `port` as well: that is sooner there.

        An agent that has ports alone connects there. Raises `PortError` when nobody listens.
        """
        tunnel = Tunnel(self._new_stream(), line=self, explain=_explain_path(port))
        request = message.connect_path_request(tunnel.stream, path)
        try:
            await self._stand_up(tunnel, request, tunnel.connected, f"connecting to {path} of the guest", timeout_s)
        except PortError as error:
            if error.reason != ErrorCode.INVALID:
                raise
            return await self.open_tunnel(port, timeout_s=timeout_s)
        return GuestConnection(tunnel, port=port)

    async def begin_tunnel(self, port: int) -> GuestConnection:
        """A connection to `port` that does not stand yet, and may be refused. What is sent meanwhile waits there."""
        tunnel = Tunnel(self._new_stream(), line=self, explain=_explain(port))
        await self._begin_in_turn(tunnel, lambda _: message.connect_request(tunnel.stream, port, WINDOW))
        return GuestConnection(tunnel, port=port)

    async def listen(self, port: int, *, address: str = "", timeout_s: float | None = 30.0) -> Listening:
        """Somebody in the guest can connect to its `port`; each who does is to be attached. `abandon` ends it.

        The port is one of 127.0.0.1, or of another `address` of the guest's loopback. Raises `PortError` when somebody
        listens there, and `GuestError` when the machine's agent is too old for it.
        """
        explain = _explain_named(port) if address else _explain(port)
        listening = Listening(self._new_stream(), explain=explain)
        request = message.listen_request(listening.stream, port, address)
        await self._stand_up(
            listening, request, listening.listening, f"listening at port {port} of the guest", timeout_s
        )
        return listening

    async def attach(
        self, listening: Listening, number: int, *, port: int, timeout_s: float | None = 30.0
    ) -> GuestConnection:
        """The connection that `listening` told of by this number. Raises `PortError` when it does not wait any more."""
        tunnel = Tunnel(self._new_stream(), line=self, explain=_explain(port))
        request = message.attach_request(tunnel.stream, listening.stream, number, WINDOW)
        await self._stand_up(
            tunnel, request, tunnel.connected, f"a connection from port {port} of the guest", timeout_s
        )
        return GuestConnection(tunnel, port=port)

    async def _stand_up(
        self, exchange: Exchange, request: bytes, stands: Future[None], operation: str, limit_s: float | None
    ) -> None:
        """It stands. After an error, and on cancel, it is given up."""
        try:
            async with deadline(operation, limit_s):
                await self._begin_in_turn(exchange, lambda _: request)
                await stands
        except BaseException as error:
            self.abandon(exchange)
            if isinstance(error, Exception):
                self.end_with_nonsense(error)
            raise

    async def check_ports(self, *, timeout_s: float | None = 30.0) -> None:
        """Raises `GuestError` when the agent is older than connections to ports."""
        # No port: an agent that knows the request calls it invalid.
        exchange = self._new_exchange(_explain(0))
        request = message.connect_request(exchange.stream, 0)
        try:
            await self._ask(exchange, request, "asking the machine's agent for ports", timeout_s)
        except PortError:
            return
