"""One open stream each: what becomes of the frames that belong to it."""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from vmfork.agent.change import Change
from vmfork.errors import GuestError, LimitExceeded, ProtocolError
from vmfork.wire.frame import FIRST_CREDIT, MOST_CREDIT, Channel, encode_data, encode_eof
from vmfork.wire.message import parse_started

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmfork.wire.message import Failure

    Send = Callable[[bytes], None]
    Grant = Callable[[int, Channel, int], None]
    Explain = Callable[[Failure], Exception]

# Credit goes back in quarters of the window. Otherwise a program that writes line by line would cost a frame a line.
# Each costs the guest an interrupt: 200 MB with one for each 64 KiB took twice as long as with none.
_PARTS = 4
# What goes into one DATA frame at most.
CHUNK_SIZE = 65_536


def explain_plainly(failure: Failure) -> GuestError:
    """The agent's words, for a request that has no error of its own."""
    return GuestError(f"the machine's agent refused: {failure.message} ({failure.code})")


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Tells asyncio that the error was seen: an abandoned request may fail unobserved."""
    if not future.cancelled():
        future.exception()


def quiet_future() -> asyncio.Future[Any]:
    """A future whose error may go unseen."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(_retrieve)
    return future


class Intake:
    """Holds the agent to its credit on the channels of one stream, and gives it back for bytes that were taken.

    `widened` bytes more may come on each channel than the protocol begins with.
    """

    def __init__(self, grant: Grant, stream: int, *channels: Channel, widened: int = 0) -> None:
        self._grant = grant
        self._stream = stream
        self._window = FIRST_CREDIT + widened
        self._grant_size = self._window // _PARTS
        self._waiting = dict.fromkeys(channels, 0)  # came, and was not given back as credit
        self._owed = dict.fromkeys(channels, 0)

    def receive(self, channel: Channel, count: int) -> None:
        """`count` bytes came. Raises `ProtocolError` when they may not have."""
        if channel not in self._waiting:
            raise ProtocolError(f"{count} bytes came on channel {channel} of stream {self._stream}, which has none")
        waiting = self._waiting[channel] + count
        if waiting > self._window:
            raise ProtocolError(f"{waiting} bytes wait on channel {channel}, where {self._window} may")
        self._waiting[channel] = waiting

    def take(self, channel: Channel, count: int) -> None:
        """`count` bytes were used up."""
        owed = self._owed[channel] + count
        if owed >= self._grant_size:
            self._waiting[channel] -= owed
            self._grant(self._stream, channel, owed)
            owed = 0
        self._owed[channel] = owed


def add_credit(credit: int, count: int) -> int:
    """The credit after a CREDIT frame. Raises `ProtocolError` when an agent that keeps to the protocol has no more."""
    if credit + count > MOST_CREDIT:
        raise ProtocolError(f"the agent would take {credit + count} bytes ahead, where {MOST_CREDIT} are the most")
    return credit + count


class Outflow:
    """Sends content on one channel as fast as the agent's credit allows, then its end."""

    def __init__(self, send: Send, stream: int, content: bytes, *, channel: Channel = Channel.CONTENT) -> None:
        self._send = send
        self._stream = stream
        self._channel = channel
        self._rest = memoryview(content)
        self._credit = FIRST_CREDIT

    @property
    def is_done(self) -> bool:
        """Everything was sent."""
        return not self._rest

    def grant(self, count: int) -> None:
        """The agent takes `count` bytes more."""
        self._credit = add_credit(self._credit, count)
        if self._rest:
            self.pump()

    def pump(self) -> None:
        """What may be sent is sent."""
        while self._rest and self._credit:
            size = min(self._credit, CHUNK_SIZE, len(self._rest))
            self._send(encode_data(self._stream, self._channel, bytes(self._rest[:size])))
            self._rest = self._rest[size:]
            self._credit -= size
        if not self._rest:
            self._send(encode_eof(self._stream, self._channel))


class Lane(Enum):
    """The kind of place that a request takes while it stays open. None takes the last place of another."""

    PROGRAMS = "programs"
    FILES = "files"
    TUNNELS = "tunnels"


class Exchange:
    """A request without data. `reply` becomes the payload of the REPLY, or the error."""

    # Set where the agent keeps the stream open until something happens in the guest: it must be told to let go.
    lane: ClassVar[Lane | None] = None
    # Cleared where it is open as long as the connection, whether anybody uses the machine or not.
    is_use: ClassVar[bool] = True

    def __init__(self, stream: int, *, explain: Explain = explain_plainly) -> None:
        self.stream = stream
        self.reply: asyncio.Future[bytes] = quiet_future()
        self._explain = explain

    @property
    def has_ended(self) -> bool:
        """The agent closed the stream, or the line is lost."""
        return self.reply.done()

    def on_begun(self) -> None:
        """The request is on its way."""

    def on_event(self, payload: bytes) -> None:
        """EVENT."""
        raise ProtocolError(f"{len(payload)} bytes of news came on stream {self.stream}, on which nothing happens")

    def on_data(self, channel: Channel, data: bytes) -> None:
        """DATA."""
        raise ProtocolError(f"{len(data)} bytes came on channel {channel} of stream {self.stream}, which has none")

    def on_eof(self, channel: Channel) -> None:
        """EOF. Of most it tells nothing that the REPLY does not."""

    def on_credit(self, channel: Channel, count: int) -> None:
        """CREDIT."""

    def on_reply(self, payload: bytes) -> None:
        """REPLY."""
        if not self.reply.done():
            self.reply.set_result(payload)

    def on_error(self, failure: Failure) -> None:
        """ERROR."""
        self.fail(self._explain(failure))

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        if not self.reply.done():
            self.reply.set_exception(error)


class Leftover(Exchange):
    """Takes the place of an exchange that nobody follows any more.

    It stays until the agent closes the stream, so that the stream's number is not used again meanwhile. The end still
    reaches the exchange's `reply`.
    """

    def __init__(self, original: Exchange) -> None:
        self.stream = original.stream
        self.reply = original.reply
        self._original = original

    def on_event(self, payload: bytes) -> None:
        """Of no interest."""

    def on_data(self, channel: Channel, data: bytes) -> None:
        """Thrown away."""

    def on_reply(self, payload: bytes) -> None:
        """Passed on."""
        self._original.on_reply(payload)

    def on_error(self, failure: Failure) -> None:
        """Passed on."""
        self._original.on_error(failure)

    def fail(self, error: Exception) -> None:
        """Passed on."""
        self._original.fail(error)


class LastingExchange(Exchange):
    """A request without data that takes the agent a while."""

    lane = Lane.FILES


class Room:
    """What may still be kept of what a guest sends. `None` is no limit."""

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self._used = 0

    def cut(self, data: bytes) -> bytes:
        """The part of `data` that is kept: less than all of it where the limit is passed."""
        if self.limit_bytes is not None:
            data = data[: self.limit_bytes - self._used]
        self._used += len(data)
        return data


class Download(Exchange):
    """Collects channel 0, `limit_bytes` of it at most: `reply` is a `LimitExceeded` where there is more."""

    lane = Lane.FILES

    def __init__(
        self,
        stream: int,
        operation: str,
        limit_bytes: int | None,
        *,
        widened: int,
        hint: str,
        grant: Grant,
        explain: Explain,
    ) -> None:
        super().__init__(stream, explain=explain)
        self.operation = operation
        self._hint = hint
        self._room = Room(limit_bytes)
        self._intake = Intake(grant, stream, Channel.CONTENT, widened=widened)
        self._kept = bytearray()

    @property
    def content(self) -> bytes:
        """What came."""
        return bytes(self._kept)

    def on_data(self, channel: Channel, data: bytes) -> None:
        """Kept, and the agent may send as much again."""
        if self.has_ended:
            return
        self._intake.receive(channel, len(data))
        kept = self._room.cut(data)
        self._kept += kept
        if len(kept) < len(data):
            limit_bytes = self._room.limit_bytes or 0
            self.fail(LimitExceeded(self.operation, limit_bytes, content=self.content, hint=self._hint))
        else:
            self._intake.take(channel, len(data))


class Upload(Exchange):
    """Sends channel 0."""

    lane = Lane.FILES

    def __init__(self, stream: int, content: bytes, *, send: Send, explain: Explain) -> None:
        super().__init__(stream, explain=explain)
        self._outflow = Outflow(send, stream, content)

    def on_begun(self) -> None:
        """The content follows."""
        self._outflow.pump()

    def on_credit(self, channel: Channel, count: int) -> None:
        """More may be sent."""
        if channel is Channel.CONTENT:
            self._outflow.grant(count)


class Run(Exchange):
    """A program. `send_lists` is for arguments and variables that are too long for the request."""

    lane = Lane.PROGRAMS

    def __init__(self, stream: int, *, send: Send, explain: Explain) -> None:
        super().__init__(stream, explain=explain)
        self._send = send
        self._lists: Outflow | None = None

    def send_lists(self, lists: bytes) -> None:
        """The arguments and variables will follow the request."""
        self._lists = Outflow(self._send, self.stream, lists, channel=Channel.ARGUMENTS)

    def on_begun(self) -> None:
        """What the request could not hold follows it."""
        if self._lists is not None:
            self._lists.pump()
        self._on_lists_moved()

    def on_credit(self, channel: Channel, count: int) -> None:
        """More of the arguments may be sent, or of the input."""
        if channel is Channel.ARGUMENTS and self._lists is not None and not self._lists.is_done:
            self._lists.grant(count)
            self._on_lists_moved()
        elif channel is Channel.CONTENT:
            self.on_input_credit(count)

    def _on_lists_moved(self) -> None:
        if self._lists is None or self._lists.is_done:
            self.on_told()

    def on_told(self) -> None:
        """The agent was sent all of the command, so that its input may follow."""

    def on_input_credit(self, count: int) -> None:
        """The process took input."""


class CollectedRun(Run):
    """A process whose output is kept and whose input, if any, is given beforehand.

    What comes on a channel that has a sink is given to that, and not kept. Of both streams together `limit_bytes` are
    kept. Where there is more, `is_full` says so, and `on_full` is called.
    """

    def __init__(
        self,
        stream: int,
        content: bytes | None,
        limit_bytes: int | None,
        *,
        sinks: Mapping[Channel, Callable[[bytes], object]],
        send: Send,
        grant: Grant,
        explain: Explain,
        on_full: Callable[[CollectedRun], None],
    ) -> None:
        super().__init__(stream, send=send, explain=explain)
        self.is_full = False
        self._sinks = sinks
        self._on_full = on_full
        self._room = Room(limit_bytes)
        self._input = None if content is None else Outflow(send, stream, content)
        self._intake = Intake(grant, stream, Channel.STDOUT, Channel.STDERR)
        # Not lists of what came: pieces of two bytes, if a guest sends such, take 28 times their size.
        self._kept = {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}

    @property
    def stdout(self) -> bytes:
        """What it wrote to standard output so far."""
        return bytes(self._kept[Channel.STDOUT])

    @property
    def stderr(self) -> bytes:
        """What it wrote to standard error so far."""
        return bytes(self._kept[Channel.STDERR])

    def on_event(self, payload: bytes) -> None:
        """It runs. Nobody asks for the number."""
        parse_started(payload)

    def on_told(self) -> None:
        """The input follows."""
        if self._input is not None:
            self._input.pump()

    def on_data(self, channel: Channel, data: bytes) -> None:
        """Kept, and the process may write as much again."""
        if self.is_full or self.has_ended:
            return
        self._intake.receive(channel, len(data))
        if (sink := self._sinks.get(channel)) is not None:
            self._pass_on(sink, channel, data)
            return
        kept = self._room.cut(data)
        self._kept[channel] += kept
        if len(kept) < len(data):
            self.is_full = True
            self._on_full(self)
        else:
            self._intake.take(channel, len(data))

    def _pass_on(self, sink: Callable[[bytes], object], channel: Channel, data: bytes) -> None:
        """`sink` was given the bytes; what it raises is the end of the run."""
        try:
            sink(data)
        except Exception as error:  # noqa: BLE001 - raised where the run is awaited; the line has no part in it
            self.fail(error)
        else:
            self._intake.take(channel, len(data))

    def on_input_credit(self, count: int) -> None:
        """The process took input."""
        if self._input is not None:
            self._input.grant(count)


class StreamedRun(Run):
    """A process whose output waits until it is taken, and whose input comes while it runs.

    `started` becomes the pid. `arrived` tells that output came, `credited` that credit did, both of the end. `late` is
    what its end raises when its time was up before; `lifetime` looks after that.
    """

    def __init__(self, stream: int, *, send: Send, grant: Grant, explain: Explain) -> None:
        super().__init__(stream, send=send, explain=explain)
        self.started: asyncio.Future[int] = quiet_future()
        self.waiting: deque[tuple[Channel, bytes]] = deque()
        self.credit = FIRST_CREDIT
        self.arrived = Change()
        self.credited = Change()
        self.late: Exception | None = None
        self.lifetime: asyncio.Task[None] | None = None
        self._intake = Intake(grant, stream, Channel.STDOUT, Channel.STDERR)

    def on_event(self, payload: bytes) -> None:
        """The program runs."""
        pid = parse_started(payload)
        if not self.started.done():
            self.started.set_result(pid)

    def on_data(self, channel: Channel, data: bytes) -> None:
        """Held until taken. The credit bounds how much that can be, whatever the guest would send."""
        self._intake.receive(channel, len(data))
        # Without bytes it would cost no credit, and as many as the guest likes would wait.
        if data:
            self.waiting.append((channel, data))
            self.arrived.tell()

    def take(self, channel: Channel, count: int) -> None:
        """`count` bytes of what waited were used up, and the agent may send as many again."""
        self._intake.take(channel, count)

    def on_input_credit(self, count: int) -> None:
        """The process took input."""
        self.credit = add_credit(self.credit, count)
        self.credited.tell()

    def on_reply(self, payload: bytes) -> None:
        """The process has ended."""
        if not self.started.done():
            raise ProtocolError(f"the program on stream {self.stream} has ended, and was never started")
        if self.late is not None:
            self.fail(self.late)
            return
        super().on_reply(payload)
        self._tell_end()

    def fail(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        if not self.started.done():
            self.started.set_exception(error)
        super().fail(error)
        self._tell_end()

    def _tell_end(self) -> None:
        self.arrived.tell()
        self.credited.tell()
