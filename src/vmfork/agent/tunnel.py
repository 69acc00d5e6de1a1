"""A connection to a port of the guest."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from vmfork.agent.change import Change
from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import CHUNK_SIZE, Exchange, Lane, add_credit, quiet_future
from vmfork.agent.flow import LEAST_CREDIT, Inflow, pour
from vmfork.border import guarded
from vmfork.errors import Closed, ProtocolError
from vmfork.host.dropped import close_dropped
from vmfork.owner import Owner
from vmfork.wire.frame import FIRST_CREDIT, MOST_CALLERS, Channel, encode_data, encode_eof
from vmfork.wire.given import check_content
from vmfork.wire.message import parse_caller, parse_connected

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.agent.exchange import Explain
    from vmfork.host.bound import Bound

# What was written and not taken yet has this long to be taken when a connection is closed.
_CLOSE_LIMIT_S = 5.0
# What may be under way to a port of the guest.
WINDOW = 4 * FIRST_CREDIT


class TunnelLine(Protocol):
    """What a connection to a port needs of the connection that it goes over."""

    bound: Bound
    lost: Exception | None

    @property
    def has_room(self) -> bool: ...

    @property
    def room(self) -> Change: ...

    def send(self, data: bytes) -> None: ...

    def grant(self, stream: int, channel: Channel, count: int) -> None: ...

    async def wait_room(self) -> None: ...

    def abandon(self, exchange: Exchange) -> None: ...


class Tunnel(Inflow):
    """Channel 0 both ways. `connected` is done when the connection stands; `is_at_end`: the guest sends nothing more.

    What came waits until it is taken. `credit` is how much more may be sent, `window` what it is once all was taken.
    """

    lane = Lane.TUNNELS

    def __init__(self, stream: int, *, line: TunnelLine, explain: Explain) -> None:
        super().__init__(stream, widened=0, grant=line.grant, explain=explain)
        self.connected: asyncio.Future[None] = quiet_future()
        self.credit = self.window = FIRST_CREDIT
        self.is_at_end = False
        self.line = line
        self.has_sent_eof = False

    @property
    def all_was_taken(self) -> bool:
        """The program was given all that was sent."""
        return self.credit >= self.window

    async def settle(self) -> bool:
        """Whether the program took all that was sent, or the connection has ended, within five seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                while not (self.all_was_taken or self.has_ended):
                    await self.credited.next()
                return True
        return False

    def on_event(self, payload: bytes) -> None:
        """The connection stands."""
        window = parse_connected(payload)
        if not self.connected.done():
            self.window = window
            self.connected.set_result(None)

    def on_data(self, channel: Channel, data: bytes) -> None:
        """Held until taken."""
        if self.is_at_end or not self.connected.done():
            raise ProtocolError(f"{len(data)} bytes came on stream {self.stream} outside of its connection")
        super().on_data(channel, data)

    def on_eof(self, channel: Channel) -> None:
        """The guest sends nothing more."""
        self.is_at_end = self.is_at_end or channel is Channel.CONTENT
        self.arrived.tell()

    def on_credit(self, channel: Channel, count: int) -> None:
        """The program took that much."""
        if channel is Channel.CONTENT:
            self.credit = add_credit(self.credit, count)
            self.credited.tell()

    def on_reply(self, payload: bytes) -> None:
        """Both sides have ended."""
        if not self.connected.done():
            raise ProtocolError(f"the connection on stream {self.stream} has ended, and never stood")
        self.is_at_end = True
        super().on_reply(payload)

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        if not self.connected.done():
            self.connected.set_exception(error)
        super().fail(error)

    async def next_piece(self, most: int) -> bytes:
        """What came, `most` bytes of it; empty at the end. Raises what ended the connection before."""
        while not (self.is_at_end or self.has_ended or self.has_waiting):
            await self.arrived.next()
        data = self.cut(most)
        if not data and not self.is_at_end:
            self.reply.result()
        return data

    @property
    def room(self) -> int:
        """How many bytes `put` takes now. Raises what ended the connection."""
        if self.has_ended:
            self.reply.result()
            raise Closed("the connection to the guest, for writing")
        return min(self.credit, CHUNK_SIZE) if self.credit >= LEAST_CREDIT and self.line.has_room else 0

    def put(self, data: bytes) -> int:
        """All of it, no more than `room`, is on its way; also before the connection stands. Gives how much that is."""
        self.credit -= len(data)
        self.line.send(encode_data(self.stream, Channel.CONTENT, data))
        return len(data)

    def end(self) -> None:
        """The program in the guest reads to the end. Again it does nothing."""
        if not (self.has_sent_eof or self.has_ended):
            self.line.send(encode_eof(self.stream, Channel.CONTENT))
        self.has_sent_eof = True

    def peek(self, most: int) -> bytes | None:
        """What came, `most` bytes of it; empty at the end, `None` while nothing does. Raises what ended it before."""
        if self.has_waiting:
            return self.look(most)
        if self.has_ended:
            self.reply.result()
        return b"" if self.is_at_end else None

    def follow(self, callback: Callable[[], None]) -> None:
        """`callback` is called when one of these may have changed."""
        for change in (self.arrived, self.credited, self.line.room):
            change.follow(callback)

    def leave(self, callback: Callable[[], None]) -> None:
        """`callback` is not called any more."""
        for change in (self.arrived, self.credited, self.line.room):
            change.leave(callback)


class Listening(Exchange):
    """LISTEN: who calls in the guest is told of by numbers. `listening` is done when somebody can call."""

    lane = Lane.TUNNELS

    def __init__(self, stream: int, *, explain: Explain) -> None:
        super().__init__(stream, explain=explain)
        self.listening: asyncio.Future[None] = quiet_future()
        self._callers: deque[int] = deque()
        self._change = Change()

    def on_event(self, payload: bytes) -> None:
        """Somebody can call, or does. As many wait as the agent keeps: a guest that tells of more loses its line."""
        number = parse_caller(payload)
        if number is not None:
            if len(self._callers) >= MOST_CALLERS:
                raise ProtocolError(f"more than {MOST_CALLERS} connections wait on stream {self.stream}")
            self._callers.append(number)
        elif not self.listening.done():
            self.listening.set_result(None)
        self._change.tell()

    def on_reply(self, payload: bytes) -> None:
        """Listening has no end in order."""
        raise ProtocolError(f"listening on stream {self.stream} has ended by itself, with {len(payload)} bytes")

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        if not self.listening.done():
            self.listening.set_exception(error)
        super().fail(error)
        self._change.tell()

    async def next_caller(self) -> int:
        """The number of the next who calls. Raises what ended it."""
        while not self._callers:
            if self.has_ended:
                self.reply.result()
            await self._change.next()
        return self._callers.popleft()


@guarded
class GuestConnection(Owner):
    """A TCP connection to a port of the guest, without a port on the host. What comes waits in the guest until `read`.

    `aclose()`, or leaving the `async with` block, closes it as a socket is closed: what was written still arrives.
    """

    port: int
    """The port in the guest."""

    def __init__(self, tunnel: Tunnel, *, port: int) -> None:
        self.port = port
        self._line = tunnel.line
        self._tunnel = tunnel
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<GuestConnection to port {self.port}, {'ended' if self._tunnel.has_ended else 'open'}>"

    def __del__(self) -> None:
        if not (self._is_closed or self._tunnel.has_ended) and self._line.lost is None:
            close_dropped(self, self._line.bound, self._reset)

    async def read(self, size: int = CHUNK_SIZE, *, timeout_s: float | None = None) -> bytes:
        """What came, at least one byte and at most `size`; empty once the guest has sent all it will.

        Waits while nothing comes. Raises `PortError` when the connection was lost, behind what came before that.
        """
        self._check()
        async with deadline(f"reading from {self._name}", timeout_s):
            data = await self._tunnel.next_piece(size)
        self._tunnel.take(len(data))
        return data

    async def write(self, data: bytes, *, timeout_s: float | None = None) -> None:
        """The bytes are on their way. Waits while the program in the guest has 65,536 bytes of them to read.

        After a deadline or a cancellation a part of them may have gone. Raises `PortError` when the connection was
        lost, and `Closed` after `write_eof`.
        """
        self._check()
        if self._tunnel.has_sent_eof:
            raise Closed(f"{self._name}, for writing")
        content = check_content(data, field="data")
        async with deadline(f"writing to {self._name}", timeout_s):
            is_sent = await pour(self._tunnel, content, send=self._line.send, wait_room=self._line.wait_room)
        if not is_sent:
            self._tunnel.reply.result()
            raise Closed(self._name)

    async def write_eof(self) -> None:
        """The program in the guest reads to the end, and may still answer. Again it does nothing."""
        self._check()
        self._tunnel.end()

    async def wait_closed(self) -> None:
        """Both sides have ended, and the program in the guest was given all. Raises `PortError` when it was lost."""
        self._check()
        await asyncio.shield(self._tunnel.reply)

    async def abort(self) -> None:
        """The connection is gone at once, and the program in the guest is told that its peer is lost."""
        if self._line.bound.is_here:
            self._reset()
        self._is_closed = True

    async def aclose(self) -> None:
        """The connection is closed. What was written has arrived, unless nobody read it for five seconds."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._tunnel.has_ended or not self._line.bound.is_here:
            # In a forked child it is the parent's. Closed from another event loop, it ends with its machine.
            return
        try:
            if await self._tunnel.settle():
                self._tunnel.end()
        finally:
            self._reset()

    @property
    def _name(self) -> str:
        return f"the connection to port {self.port} of the guest"

    def _check(self) -> None:
        if self._is_closed:
            raise Closed(self._name)
        self._line.bound.check()

    def _reset(self) -> None:
        """Behind an end that was sent, the agent closes its side as any program does; else it is a reset."""
        self._is_closed = True
        if not self._line.bound.is_stranded:
            self._line.abandon(self._tunnel)


def tunnel_of(connection: GuestConnection) -> Tunnel:
    """What the connection is made of, for whoever works by callbacks."""
    return connection._tunnel  # noqa: SLF001 - hidden from callers of the library alone
