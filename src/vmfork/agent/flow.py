"""Streams of any length, taken and given piece by piece, so that neither side holds more than the credit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vmfork.agent.change import Change
from vmfork.agent.exchange import CHUNK_SIZE, Exchange, Intake, Lane, add_credit
from vmfork.errors import ProtocolError
from vmfork.wire.frame import FIRST_CREDIT, Channel, encode_data, encode_eof

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.agent.exchange import Explain, Grant, Send


# With less credit nothing is sent while more is to come. Each frame brings as much credit back, which would go into a
# frame of that size again: 16 MB into a guest went in 3,007 frames, and took its QEMU 0.72 s; now 297, and 0.32 s.
LEAST_CREDIT = FIRST_CREDIT // 2


class Taker(Protocol):
    """A request whose channel 0 takes what the host sends, as far as `credit` goes. `credited`: more, or the end."""

    stream: int
    credit: int
    credited: Change

    @property
    def has_ended(self) -> bool: ...


async def pour(taker: Taker, data: bytes | bytearray, *, send: Send, wait_room: Callable[[], Awaitable[None]]) -> bool:
    """Whether all of it is on its way; not when the request ended before.

    `wait_room` waits while the line has much that was not sent yet, whatever credit the agent gives.
    """
    rest = memoryview(data)
    while rest:
        await wait_room()
        if taker.has_ended:
            return False
        size = min(taker.credit, CHUNK_SIZE, len(rest))
        if size < min(LEAST_CREDIT, len(rest)):
            await taker.credited.next()
            continue
        taker.credit -= size
        send(encode_data(taker.stream, Channel.CONTENT, bytes(rest[:size])))
        rest = rest[size:]
    return True


class _Flow(Exchange):
    """A request of some length. `arrived` tells that bytes came, `credited` that credit did, both of the end.

    Apart, for credit comes back for each piece that was sent, and who waits for the answer would be woken by it.
    """

    lane = Lane.FILES

    def __init__(self, stream: int, *, explain: Explain) -> None:
        super().__init__(stream, explain=explain)
        self.arrived = Change()
        self.credited = Change()

    def on_reply(self, payload: bytes) -> None:
        """The agent is done."""
        super().on_reply(payload)
        self._tell_end()

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        super().fail(error)
        self._tell_end()

    def _tell_end(self) -> None:
        self.arrived.tell()
        self.credited.tell()


class Inflow(_Flow):
    """Channel 0 of the guest. What came waits until it is taken, `FIRST_CREDIT` and `widened` bytes at most."""

    def __init__(self, stream: int, *, widened: int, grant: Grant, explain: Explain) -> None:
        super().__init__(stream, explain=explain)
        self._intake = Intake(grant, stream, Channel.CONTENT, widened=widened)
        self._waiting = bytearray()
        self._least = 1

    def on_data(self, channel: Channel, data: bytes) -> None:
        """Held until taken. The credit bounds how much that can be, whatever the guest would send."""
        self._intake.receive(channel, len(data))
        self._waiting += data
        if len(self._waiting) >= self._least:
            self.arrived.tell()

    @property
    def has_waiting(self) -> bool:
        """Something came that was not taken yet."""
        return bool(self._waiting)

    def look(self, most: int) -> bytes:
        """The first `most` bytes of what waits."""
        with memoryview(self._waiting) as waiting:
            return bytes(waiting[:most])

    def cut(self, most: int) -> bytes:
        """The first `most` bytes of what waits, which do not wait any more."""
        data = self.look(most)
        del self._waiting[:most]
        return data

    def drop(self, count: int) -> None:
        """The first `count` bytes of what waits were used up, and the agent may send as many again."""
        del self._waiting[:count]
        self.take(count)

    async def next_bytes(self, *, least: int = 1) -> bytearray:
        """What came, `least` bytes unless it is the end; empty at the end. Raises what ended the request.

        `least` is no more than half of the window: what was taken and is still owed as credit is a quarter of it.
        """
        self._least = least
        while len(self._waiting) < least and not self.has_ended:
            await self.arrived.next()
        data, self._waiting = self._waiting, bytearray()
        if not data:
            self.reply.result()
        return data

    def take(self, count: int) -> None:
        """`count` bytes were used up, and the agent may send as many again."""
        if not self.has_ended:
            self._intake.take(Channel.CONTENT, count)


class Outpour(_Flow):
    """Channel 0 of the host. `taken` is how many bytes the agent has used up, as far as it said."""

    def __init__(
        self, stream: int, *, widened: int, send: Send, wait_room: Callable[[], Awaitable[None]], explain: Explain
    ) -> None:
        super().__init__(stream, explain=explain)
        self._send = send
        self._wait_room = wait_room
        self.credit = FIRST_CREDIT
        # The agent allows as much more at once: that is nothing it has used up.
        self.taken = -widened

    def on_credit(self, channel: Channel, count: int) -> None:
        """The agent took that much."""
        if channel is Channel.CONTENT:
            self.credit = add_credit(self.credit, count)
            self.taken += count
            self.credited.tell()

    async def pour(self, data: bytes | bytearray) -> None:
        """All of it is on its way. Raises what ended the request."""
        if not await pour(self, data, send=self._send, wait_room=self._wait_room):
            self.reply.result()
            raise ProtocolError("the agent ended a copy before its end")

    def end(self) -> None:
        """Nothing more comes."""
        if not self.has_ended:
            self._send(encode_eof(self.stream, Channel.CONTENT))
