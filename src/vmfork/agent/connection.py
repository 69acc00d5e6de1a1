"""The open streams of one connection to an agent."""

from __future__ import annotations

import asyncio
import signal as signals
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import Exchange, Leftover, explain_plainly
from vmfork.agent.line import Line
from vmfork.errors import Closed, GuestError, ProtocolError
from vmfork.host.bound import Bound
from vmfork.owner import Owner
from vmfork.wire.frame import Channel, Kind, decode_credit, decode_data, decode_eof, encode_credit
from vmfork.wire.message import kill_request, parse_error, parse_started

if TYPE_CHECKING:
    import socket
    from typing import Self

    from vmfork.agent.exchange import Explain
    from vmfork.wire.frame import Frame

_PLENTY = 0x7FFF_FFFF
# A killed process is gone and told of within milliseconds.
_SETTLE_LIMIT_S = 2.0
_LAST_STREAM = 0xFFFF_FFFF


class Connection(Owner):
    """Owns the connection to the agent of one machine. Not for use from several event loops.

    Any number of requests may be open at a time, up to the agent's limit of 64. When the line ends, `lost` tells why,
    `closed` is done, and every request open or made later raises that reason. A request that is cancelled or runs
    out of time is given up in the guest as well: its process is killed, its half-written file removed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.bound = Bound("the machine")
        self.lost: Exception | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open: dict[int, Exchange] = {}
        self._none_open: asyncio.Future[None] | None = None
        self._last_stream = 0
        self._reason_limit_s = 0.0
        self._losing: asyncio.TimerHandle | None = None
        self._line = Line(sock, on_frame=self._take_frame, on_lost=self._lose)

    @classmethod
    async def open(cls, sock: socket.socket) -> Self:
        """A client that owns `sock`, a connected stream socket. Nothing was sent yet."""
        return cls(sock)

    async def aclose(self) -> None:
        """The socket is closed, and what was open raises `Closed`. The agent kills what this client had running."""
        if self.lost is None:
            self.fail(Closed("the connection to the machine's agent"))

    def drop(self) -> None:
        """The socket is closed, without a word to whoever waits: for when the event loop it belongs to is gone."""
        self.lost = self.lost or Closed("the connection to the machine's agent")
        self._line.drop()

    async def release(self) -> socket.socket:
        """The socket, in a state in which another client can go on; this one is closed. The caller closes the socket.

        What was given up is waited for, two seconds at most. `GuestError` while something still runs: nothing changed.
        """
        if self.lost is not None:
            raise self.lost.with_traceback(None)
        if not any(exchange.lasts for exchange in self._open.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_LIMIT_S):
                    await self._wait_none_open()
        if self._open or not self._line.is_quiet:
            hint = "wait for it, or close it, before the machine is detached"
            raise GuestError("something still runs under the machine's agent", hint=hint)
        self.lost = Closed("the connection to the machine's agent", "the machine was detached")
        if not self.closed.done():
            self.closed.set_result(None)
        return self._line.release()

    def fail(self, reason: Exception) -> None:
        """The connection is closed, and every request, open or later, raises `reason`.

        On a connection that has ended already, `reason` takes the place of the one known so far.
        """
        self.lost = reason
        if self._losing is not None:
            self._losing.cancel()
        self._line.close()
        self._fail_open(reason)
        if not self.closed.done():
            self.closed.set_result(None)

    def await_reason(self, limit_s: float) -> None:
        """A line that ends fails its requests up to `limit_s` seconds later, so that whoever knows why can say it.

        The socket of a machine that died is closed a moment before its process is seen to have ended.
        """
        self._reason_limit_s = limit_s

    def _lose(self, reason: Exception) -> None:
        if self._reason_limit_s and not isinstance(reason, ProtocolError):
            self._losing = asyncio.get_running_loop().call_later(self._reason_limit_s, self.fail, reason)
        else:
            self.fail(reason)

    def send(self, data: bytes) -> None:
        """Frames for a stream that is open are on their way."""
        self._line.send(data)

    def kill_nowait(self, stream: int) -> None:
        """SIGKILL is on its way to the process group on that stream; a transfer on it is given up."""
        if self.lost is None:
            exchange = self._new_exchange()
            self._begin(exchange, kill_request(exchange.stream, stream, signals.SIGKILL))

    def abandon(self, exchange: Exchange) -> None:
        """The exchange is abandoned, here and in the agent. Returns without waiting."""
        if self._open.get(exchange.stream) is not exchange:
            return
        self._open[exchange.stream] = Leftover(exchange)
        if exchange.lasts:
            self.kill_nowait(exchange.stream)
            # A killed process has at most its pipes full of output, and ends once that is sent, wanted or not.
            self.send(b"".join(encode_credit(exchange.stream, channel, _PLENTY) for channel in Channel))

    def _fail_open(self, reason: Exception) -> None:
        ended, self._open = self._open, {}
        for exchange in ended.values():
            exchange.fail(reason)

    def _new_stream(self) -> int:
        if self.lost is not None:
            raise self.lost.with_traceback(None)
        self.bound.check()
        while True:
            self._last_stream = self._last_stream % _LAST_STREAM + 1
            if self._last_stream not in self._open:
                return self._last_stream

    def _new_exchange(self, explain: Explain = explain_plainly) -> Exchange:
        return Exchange(self._new_stream(), explain=explain)

    def _begin(self, exchange: Exchange, request: bytes) -> None:
        self._open[exchange.stream] = exchange
        self._line.send(request)

    async def _result(self, exchange: Exchange, operation: str, limit_s: float | None) -> bytes:
        try:
            async with deadline(operation, limit_s):
                return await exchange.reply
        finally:
            self.abandon(exchange)

    async def _ask(self, exchange: Exchange, request: bytes, operation: str, limit_s: float | None) -> bytes:
        self._begin(exchange, request)
        return await self._result(exchange, operation, limit_s)

    async def _wait_none_open(self) -> None:
        while self._open:
            self._none_open = asyncio.get_running_loop().create_future()
            await self._none_open

    def _forget(self, stream: int) -> None:
        del self._open[stream]
        if not self._open and self._none_open is not None and not self._none_open.done():
            self._none_open.set_result(None)

    def _take_frame(self, frame: Frame) -> None:
        exchange = self._open.get(frame.stream)
        if frame.kind is Kind.ERROR:
            self._take_error(exchange, frame)
        elif frame.kind is Kind.REQUEST:
            raise ProtocolError("the agent sent a request")
        elif exchange is None:
            # Ours and the agent's frames crossed on the line.
            return
        elif frame.kind is Kind.REPLY:
            self._forget(frame.stream)
            exchange.on_reply(frame.payload)
        else:
            _take_progress(exchange, frame)

    def _take_error(self, exchange: Exchange | None, frame: Frame) -> None:
        failure = parse_error(frame.payload)
        if failure.code == "protocol":
            raise ProtocolError(f"the agent could not make sense of what it was sent: {failure.message}")
        if exchange is not None:
            self._forget(frame.stream)
            exchange.on_error(failure)


def _take_progress(exchange: Exchange, frame: Frame) -> None:
    if frame.kind is Kind.DATA:
        exchange.on_data(*decode_data(frame.payload))
    elif frame.kind is Kind.CREDIT:
        exchange.on_credit(*decode_credit(frame.payload))
    elif frame.kind is Kind.EVENT:
        exchange.on_started(parse_started(frame.payload))
    else:
        # The end of a channel tells nothing that the REPLY does not.
        decode_eof(frame.payload)
