"""The open streams of one connection to an agent."""

from __future__ import annotations

import asyncio
import signal as signals
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import Exchange, Lane, Leftover, explain_plainly
from vmfork.agent.line import Line, explain_nonsense
from vmfork.agent.silence import Silence
from vmfork.errors import Closed, GuestError, ProtocolError
from vmfork.host.bound import Bound
from vmfork.owner import Owner
from vmfork.wire.frame import (
    FIRST_WITH_ROOM,
    MOST_OPEN,
    MOST_OPEN_BEFORE,
    MOST_TUNNELS,
    Channel,
    Kind,
    Opcode,
    decode_credit,
    decode_data,
    decode_eof,
    encode_credit,
    encode_request,
)
from vmfork.wire.message import (
    PROTOCOL_ITEM,
    adopt_request,
    kill_request,
    parse_error,
    parse_outcomes,
    parse_protocol,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from typing import Self

    from vmfork.agent.change import Change
    from vmfork.agent.exchange import Explain
    from vmfork.wire.frame import Frame
    from vmfork.wire.message import ItemOutcome

_PLENTY = 0x7FFF_FFFF
_FROM_GUEST = (Channel.CONTENT, Channel.STDOUT, Channel.STDERR)
# A killed process is gone and told of within milliseconds.
_SETTLE_LIMIT_S = 2.0
_LAST_STREAM = 0xFFFF_FFFF


class Connection(Owner):
    """Owns the connection to the agent of one machine. Not for use from several event loops.

    Any number of requests may be made at a time. Those that the agent cannot keep open wait here for their turn.
    Programs and files have lines of their own, so that files are read however many programs run. When the connection
    ends, `lost` tells why, `closed` is done, and every request that is open or made later raises that reason. A request
    that is cancelled or runs out of time is given up in the guest as well: its process is killed, its half-written file
    removed.
    """

    def __init__(self, sock: socket.socket, *, protocol: int | None = None) -> None:
        self.bound = Bound("the machine")
        self.lost: Exception | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open: dict[int, Exchange] = {}
        self._none_open: asyncio.Future[None] | None = None
        self._last_stream = 0
        self._last_used = time.monotonic()
        self._reason_limit_s = 0.0
        self._losing: asyncio.TimerHandle | None = None
        # The answers to HELLO and ADOPT tell it, and a fork begins with ADOPT: hardly anybody need ask.
        self._protocol = protocol
        self._places: dict[Lane, asyncio.Semaphore] = {}
        self._taken: dict[int, asyncio.Semaphore] = {}
        self._silence: Silence | None = None
        self._line = Line(sock, on_frame=self._take_frame, on_lost=self._lose)

    @classmethod
    async def open(cls, sock: socket.socket, *, protocol: int | None = None) -> Self:
        """A client that owns `sock`, a connected stream socket. Nothing was sent yet.

        `protocol` is the agent's, where it is known; else it is asked before the first request that depends on it.
        """
        return cls(sock, protocol=protocol)

    async def aclose(self) -> None:
        """The socket is closed, and what was open raises `Closed`. The agent kills what this client had running."""
        if self.lost is None:
            self.fail(Closed("the connection to the machine's agent"))

    def drop(self) -> None:
        """The socket is closed, and nobody who waits is told: for when the event loop they wait on is gone."""
        self.lost = self.lost or Closed("the connection to the machine's agent")
        self._silence = None
        self._line.drop()

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is open."""
        return 0.0 if any(exchange.is_use for exchange in self._open.values()) else time.monotonic() - self._last_used

    @property
    def traffic(self) -> tuple[int, int]:
        """The bytes that were sent to the agent, and those that came from it."""
        return self._line.sent_bytes, self._line.received_bytes

    def count_programs(self) -> int:
        """How many programs run for this client."""
        return sum(exchange.lane is Lane.PROGRAMS for exchange in self._open.values())

    async def release(self) -> socket.socket:
        """The socket, in a state in which another client can go on; this one is closed. The caller closes the socket.

        Connections to ports end. They, and requests that were given up, have two seconds for it. Raises `GuestError`
        when something still runs; nothing else has changed then.
        """
        if self.lost is not None:
            raise self.lost.with_traceback(None)
        given_up = Closed("the connection to the machine's agent", how="was given up when the machine was detached")
        if all(exchange.lane in (None, Lane.TUNNELS) for exchange in self._open.values()):
            self._end_tunnels(given_up)
            with suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_LIMIT_S):
                    await self._wait_none_open()
        if self._open or not self._line.is_quiet:
            hint = "wait for it, or close it, before the machine is detached"
            raise GuestError("something still runs under the machine's agent", hint=hint)
        self.lost = given_up
        if not self.closed.done():
            self.closed.set_result(None)
        self._stop_listening()
        return self._line.release()

    def _end_tunnels(self, reason: Exception) -> None:
        """Connections to ports end with `reason`, which is no fault of theirs: nothing runs because of them."""
        for exchange in [each for each in self._open.values() if each.lane is Lane.TUNNELS]:
            self.abandon(exchange)
            exchange.fail(reason)

    def _stop_listening(self) -> None:
        if self._silence is not None:
            self._silence.stop()
        self._silence = None

    def fail(self, reason: Exception) -> None:
        """The connection is closed, and every request, open or later, raises `reason`.

        On a connection that has ended already, `reason` takes the place of the one known so far.
        """
        self.lost = reason
        if self._losing is not None:
            self._losing.cancel()
        self._stop_listening()
        self._line.close()
        self._fail_open(reason)
        if not self.closed.done():
            self.closed.set_result(None)

    def await_reason(self, limit_s: float) -> None:
        """When the line ends, its requests fail up to `limit_s` seconds later: whoever knows why has time to say it.

        The socket of a machine that died is closed a moment before its process is seen to have ended.
        """
        self._reason_limit_s = limit_s

    def watch_silence(self, limit_s: float, give_up: Callable[[], None]) -> None:
        """`give_up` is called when the guest is silent for twice `limit_s` seconds while a request waits for it.

        After half of that time the guest is asked for a sign of life. To begin anew, call `wait_on`.
        """
        self._silence = Silence(limit_s, is_awaited=lambda: bool(self._open), ask=self._ask_for_life, give_up=give_up)

    def wait_on(self) -> None:
        """Silence counts from now on."""
        if self._silence is not None:
            self._silence.expect()

    def _ask_for_life(self) -> None:
        exchange = self._new_exchange()
        self._begin(exchange, encode_request(exchange.stream, Opcode.PING))
        self._open[exchange.stream] = Leftover(exchange)

    def _lose(self, reason: Exception) -> None:
        if self._reason_limit_s and not isinstance(reason, ProtocolError):
            self._losing = asyncio.get_running_loop().call_later(self._reason_limit_s, self.fail, reason)
        else:
            self.fail(reason)

    def send(self, data: bytes) -> None:
        """Frames for a stream that is open are on their way."""
        self._line.send(data)

    async def wait_room(self) -> None:
        """The agent has taken most of what it was sent, or is gone."""
        await self._line.wait_room()

    @property
    def has_room(self) -> bool:
        """`wait_room` would not wait. `room` changes when it becomes so."""
        return self._line.has_room

    @property
    def room(self) -> Change:
        """Changes when the agent has taken most of what it was sent."""
        return self._line.room

    def grant(self, stream: int, channel: Channel, count: int) -> None:
        """The agent may send `count` bytes more on a channel of a stream."""
        self._line.grant(stream, channel, count)

    def kill_nowait(self, stream: int, signal: int = signals.SIGKILL) -> None:
        """The signal is on its way to what was started on that stream; a transfer on it is given up."""
        if self.lost is None:
            exchange = self._new_exchange()
            self._begin(exchange, kill_request(exchange.stream, stream, signal))

    def abandon(self, exchange: Exchange) -> None:
        """The exchange is abandoned, here and in the agent. Returns without waiting."""
        if self._open.get(exchange.stream) is not exchange:
            return
        self._open[exchange.stream] = Leftover(exchange)
        if exchange.lane is not None:
            self.end_nowait(exchange.stream)

    def _is_open(self, exchange: Exchange) -> bool:
        """It was begun, and has no answer yet, whoever follows it."""
        return exchange.stream in self._open

    def end_nowait(self, stream: int) -> None:
        """As `kill_nowait`, and what is still to be sent on the stream is allowed to come."""
        self.kill_nowait(stream)
        # A killed process may have its pipes full of output. The agent closes the stream once that is sent.
        self.send(b"".join(encode_credit(stream, channel, _PLENTY) for channel in _FROM_GUEST))

    def _fail_open(self, reason: Exception) -> None:
        ended, self._open = self._open, {}
        for places in self._taken.values():
            places.release()
        self._taken.clear()
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

    def is_open(self, exchange: Exchange) -> bool:
        """The agent was asked, and has not closed the stream."""
        return self._open.get(exchange.stream) is exchange

    def _begin(self, exchange: Exchange, request: bytes) -> None:
        self._open[exchange.stream] = exchange
        self._line.send(request)
        exchange.on_begun()
        if self._silence is not None:
            self._silence.expect()

    async def _begin_in_turn(self, exchange: Exchange, encode: Callable[[int], bytes]) -> None:
        """The request was sent, made for the agent's protocol, once the agent has a place for it."""
        protocol = await self._learn_protocol()
        if exchange.lane is not None:
            places = self._places.setdefault(exchange.lane, _make_places(exchange.lane, protocol))
            await places.acquire()
            if self.lost is not None:
                places.release()
                raise self.lost.with_traceback(None)
            self._taken[exchange.stream] = places
        self._begin(exchange, encode(protocol))

    async def _result(self, exchange: Exchange, operation: str, limit_s: float | None) -> bytes:
        try:
            async with deadline(operation, limit_s):
                return await exchange.reply
        finally:
            self.abandon(exchange)

    async def _ask(
        self, exchange: Exchange, request: bytes | Callable[[int], bytes], operation: str, limit_s: float | None
    ) -> bytes:
        """The answer's payload. `request` may need the agent's protocol to be made."""
        try:
            async with deadline(operation, limit_s):
                if exchange.lane is None and isinstance(request, bytes):
                    self._begin(exchange, request)
                else:
                    await self._begin_in_turn(exchange, (lambda _: request) if isinstance(request, bytes) else request)
                return await exchange.reply
        finally:
            self.abandon(exchange)

    @contextmanager
    def making_sense(self) -> Iterator[None]:
        """An answer is read in the block. When it makes no sense the connection ends, and `ProtocolError` is raised."""
        try:
            yield
        except ProtocolError as error:
            self.end_with_nonsense(error)
            raise
        except Exception as error:  # as where frames are taken: whatever a guest makes of us
            self.end_with_nonsense(broken := explain_nonsense(error))
            raise broken from error

    def end_with_nonsense(self, error: Exception) -> None:
        """The connection has ended, where the error says that what the agent sent makes no sense."""
        if self.lost is None and isinstance(error, ProtocolError):
            self.fail(error)

    async def _learn_protocol(self) -> int:
        if self._protocol is None:
            exchange = self._new_exchange()
            self._begin(exchange, adopt_request(exchange.stream, [PROTOCOL_ITEM]))
            answer = await exchange.reply
            with self.making_sense():
                self._take_protocol(answer)
        assert self._protocol is not None
        return self._protocol

    def _take_protocol(self, answer: bytes) -> list[ItemOutcome]:
        """The outcomes in the answer to ADOPT, but the last: what the agent speaks, which is noted."""
        outcomes = list(parse_outcomes(answer))
        if not outcomes:
            raise ProtocolError("the answer to adopt tells of nothing")
        self._protocol = parse_protocol(outcomes.pop()) or FIRST_WITH_ROOM - 1
        return outcomes

    async def _wait_none_open(self) -> None:
        while self._open:
            self._none_open = asyncio.get_running_loop().create_future()
            await self._none_open

    def _forget(self, stream: int) -> None:
        del self._open[stream]
        self._last_used = time.monotonic()
        if (places := self._taken.pop(stream, None)) is not None:
            places.release()
        if not self._open and self._none_open is not None and not self._none_open.done():
            self._none_open.set_result(None)

    def _take_frame(self, frame: Frame) -> bool:
        """Whether the frame was for somebody."""
        if self._silence is not None:
            self._silence.hear()
        exchange = self._open.get(frame.stream)
        if frame.kind is Kind.ERROR:
            self._take_error(exchange, frame)
        elif frame.kind is Kind.REQUEST:
            raise ProtocolError("the agent sent a request")
        elif exchange is None:
            # Ours and the agent's frames crossed on the line.
            return False
        elif frame.kind is Kind.REPLY:
            exchange.on_reply(frame.payload)
            self._forget(frame.stream)
        else:
            _take_progress(exchange, frame)
        return exchange is not None

    def _take_error(self, exchange: Exchange | None, frame: Frame) -> None:
        failure = parse_error(frame.payload)
        if failure.code == "protocol":
            raise ProtocolError(f"the agent could not make sense of what it was sent: {failure.message}")
        if exchange is not None:
            exchange.on_error(failure)
            self._forget(frame.stream)


def _make_places(lane: Lane, protocol: int) -> asyncio.Semaphore:
    """One in sixteen is kept for files; tunnels are counted apart."""
    if lane is Lane.TUNNELS:
        return asyncio.Semaphore(MOST_TUNNELS)
    most = MOST_OPEN if protocol >= FIRST_WITH_ROOM else MOST_OPEN_BEFORE
    return asyncio.Semaphore(most // 16 if lane is Lane.FILES else most - most // 16)


def _take_progress(exchange: Exchange, frame: Frame) -> None:
    if frame.kind is Kind.DATA:
        exchange.on_data(*decode_data(frame.payload))
    elif frame.kind is Kind.CREDIT:
        exchange.on_credit(*decode_credit(frame.payload))
    elif frame.kind is Kind.EVENT:
        exchange.on_event(frame.payload)
    else:
        exchange.on_eof(decode_eof(frame.payload))
