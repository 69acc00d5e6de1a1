"""Streams of any length, taken and given piece by piece, so that neither side holds more than the credit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.agent.exchange import Exchange, Intake, Lane, add_credit, quiet_future
from vmfork.errors import ProtocolError
from vmfork.wire.frame import FIRST_CREDIT, Channel, encode_data, encode_eof

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from vmfork.agent.exchange import Explain, Grant, Send

_CHUNK_SIZE = 65_536


class _Flow(Exchange):
    """A request of some length. `changed` is what to await for the next thing to happen."""

    lane = Lane.FILES

    def __init__(self, stream: int, *, explain: Explain) -> None:
        super().__init__(stream, explain=explain)
        self._changed: asyncio.Future[None] | None = None

    async def changed(self) -> None:
        """Something came: bytes, credit, or the end."""
        if self._changed is None:
            self._changed = quiet_future()
        await self._changed

    def _notify(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    def on_reply(self, payload: bytes) -> None:
        """The agent is done."""
        super().on_reply(payload)
        self._notify()

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        super().fail(error)
        self._notify()


class Inflow(_Flow):
    """Channel 0 of the guest. What came waits until it is taken, `FIRST_CREDIT` and `widened` bytes at most."""

    def __init__(self, stream: int, *, widened: int, grant: Grant, explain: Explain) -> None:
        super().__init__(stream, explain=explain)
        self._intake = Intake(grant, stream, Channel.CONTENT, widened=widened)
        self._waiting = bytearray()

    def on_data(self, channel: Channel, data: bytes) -> None:
        """Held until taken. The credit bounds how much that can be, whatever the guest would send."""
        self._intake.receive(channel, len(data))
        self._waiting += data
        self._notify()

    async def next_bytes(self) -> bytes:
        """What came; empty at the end. Raises what ended the request."""
        while not self._waiting and not self.has_ended:
            await self.changed()
        data, self._waiting = bytes(self._waiting), bytearray()
        if not data:
            self.reply.result()
        return data

    def take(self, count: int) -> None:
        """`count` bytes were used up, and the agent may send as many again."""
        if not self.has_ended:
            self._intake.take(Channel.CONTENT, count)


class Outpour(_Flow):
    """Channel 0 of the host. `taken` is how many bytes the agent has used up, as far as it said.

    `wait_room` waits while the line has much that was not sent yet, whatever credit the agent gives.
    """

    def __init__(
        self, stream: int, *, widened: int, send: Send, wait_room: Callable[[], Awaitable[None]], explain: Explain
    ) -> None:
        super().__init__(stream, explain=explain)
        self._send = send
        self._wait_room = wait_room
        self._credit = FIRST_CREDIT
        # The agent allows as much more at once: that is nothing it has used up.
        self.taken = -widened

    def on_credit(self, channel: Channel, count: int) -> None:
        """The agent took that much."""
        if channel is Channel.CONTENT:
            self._credit = add_credit(self._credit, count)
            self.taken += count
            self._notify()

    async def pour(self, data: bytes | bytearray) -> None:
        """All of it is on its way. Raises what ended the request."""
        rest = memoryview(data)
        while rest:
            await self._wait_room()
            if self.has_ended:
                self.reply.result()
                raise ProtocolError("the agent ended a copy before its end")
            size = min(self._credit, _CHUNK_SIZE, len(rest))
            if size == 0:
                await self.changed()
                continue
            self._credit -= size
            self._send(encode_data(self.stream, Channel.CONTENT, bytes(rest[:size])))
            rest = rest[size:]

    def end(self) -> None:
        """Nothing more comes."""
        if not self.has_ended:
            self._send(encode_eof(self.stream, Channel.CONTENT))
