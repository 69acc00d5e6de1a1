"""The socket to an agent: bytes out without a task, frames in as they come."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from vmfork.agent.change import Change
from vmfork.errors import GuestError, ProtocolError
from vmfork.wire.frame import HEADER_SIZE, FrameParser, encode_credit

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.wire.frame import Channel, Frame

_READ_SIZE = 65_536
# One event loop serves all machines of a process, and a guest sends what it likes. Seven thousand empty frames lie in
# one read, and raised another machine's round trip from 3 to 190 ms.
FRAMES_A_TURN = 64
# How long a line rests that had more frames than a turn takes, or sent nothing but idle bytes and frames for nobody: a
# flood costs 64,000 frames or 64 MB a second at most. What was asked for comes in large frames, and never rests.
REST_S = 0.001
# Who sends as it comes waits while this much was not taken yet: a guest may give credit for what it never reads.
MOST_UNSENT = 1024 * 1024
_MOST_CREDIT_AT_ONCE = 0x7FFF_FFFF


class Line:
    """Owns a connected socket. `on_frame` is called for every frame, `on_lost` once, when the line ends by itself.

    It works with the reader and writer callbacks of the event loop it was made on: a request costs one `send`, an
    answer one wake-up and one `recv`. A wake-up takes 64 KiB and 64 frames at most. `on_frame` says whether anybody
    waited for the frame.
    """

    def __init__(
        self, sock: socket.socket, *, on_frame: Callable[[Frame], bool], on_lost: Callable[[Exception], None]
    ) -> None:
        sock.setblocking(False)
        self.parser = FrameParser()
        self.sent_bytes = self.received_bytes = 0
        self._sock = sock
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._unsent = bytearray()
        self._ungranted: dict[tuple[int, Channel], int] = {}
        self.room = Change()
        self._resting: asyncio.TimerHandle | None = None
        self._for_nobody = 0
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, data: bytes) -> None:
        """The bytes are on their way, behind those sent before. Nothing happens on a line that is closed."""
        if not self._is_open:
            return
        if self._unsent:
            self._unsent += data
            return
        sent = self._send_now(data)
        if sent < len(data) and self._is_open:
            self._unsent += data[sent:]
            self._loop.add_writer(self._sock, self._write)

    async def wait_room(self) -> None:
        """Less than `MOST_UNSENT` bytes wait to be sent, or the line is closed."""
        while not self.has_room:
            await self.room.next()

    @property
    def has_room(self) -> bool:
        """`wait_room` would not wait. `room` changes when it becomes so."""
        return not self._is_open or len(self._unsent) < MOST_UNSENT

    def grant(self, stream: int, channel: Channel, count: int) -> None:
        """Credit is on its way. For a guest that reads nothing it is added up, so that no queue of it grows."""
        if not self._unsent:
            self.send(encode_credit(stream, channel, count))
            return
        granted = self._ungranted.get((stream, channel), 0) + count
        self._ungranted[stream, channel] = min(granted, _MOST_CREDIT_AT_ONCE)

    def close(self) -> None:
        """The socket is closed; no callback comes any more. Closing twice is no error."""
        if not self._is_open:
            return
        self._is_open = False
        self._stop_listening()
        self._sock.close()
        self._unsent.clear()
        self.room.tell()

    def drop(self) -> None:
        """The socket is closed. For when the event loop that read it does not run any more."""
        if self._is_open and not self._loop.is_closed():
            self._stop_listening()
        self._is_open = False
        self._sock.close()

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._resting is not None:
            self._resting.cancel()

    @property
    def is_quiet(self) -> bool:
        """Nothing is half sent or half received, and nothing waits to be read."""
        return self._is_open and not self._unsent and self.parser.is_idle and not _has_unread(self._sock)

    def release(self) -> socket.socket:
        """The socket, for somebody else to speak over; no callback comes any more."""
        self._stop_listening()
        sock, self._sock = self._sock, self._sock.dup()
        self._is_open = False
        self._sock.close()
        return sock

    def _lose(self, reason: Exception) -> None:
        self.close()
        self._on_lost(reason)

    def _send_now(self, data: bytes | bytearray) -> int:
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # The loop tells it, not `send` itself: whoever sends is still setting its request up.
            self._loop.call_soon(self._lose_if_open, error)
            return len(data)
        self.sent_bytes += sent
        return sent

    def _lose_if_open(self, error: OSError) -> None:
        if self._is_open:
            self._lose(_gone(error))

    def _write(self) -> None:
        del self._unsent[: self._send_now(self._unsent)]
        if len(self._unsent) < MOST_UNSENT:
            self.room.tell()
        if not self._unsent and self._is_open:
            self._loop.remove_writer(self._sock)
            ungranted, self._ungranted = self._ungranted, {}
            for (stream, channel), count in ungranted.items():
                self.grant(stream, channel, count)

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(_gone(error))
            return
        if not data:
            self._lose(_gone(None))
            return
        self.received_bytes += len(data)
        self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            frames = self.parser.feed(data, most=FRAMES_A_TURN)
            for frame in frames:
                if not self._on_frame(frame):
                    self._for_nobody += HEADER_SIZE + len(frame.payload)
                if not self._is_open:
                    return
            self.parser.check()
        except Exception as error:  # noqa: BLE001 - whatever a guest makes of us, its calls end with it and do not wait
            self._lose(explain_nonsense(error))
        else:
            if len(frames) == FRAMES_A_TURN or self._for_nobody + self.parser.wasted >= _READ_SIZE:
                self._rest()

    def _rest(self) -> None:
        """Others have the loop; nothing is read meanwhile, so that the guest is made to wait."""
        self._for_nobody = self.parser.wasted = 0
        self._loop.remove_reader(self._sock)
        self._resting = self._loop.call_later(REST_S, self._wake)

    def _wake(self) -> None:
        self._resting = None
        self._loop.add_reader(self._sock, self._read)
        self._take(b"")


def explain_nonsense(error: Exception) -> ProtocolError:
    """The reason that ends a line: the error itself, or one that says what nobody foresaw."""
    if isinstance(error, ProtocolError):
        return error
    broken = ProtocolError(f"what the agent in the guest sent makes no sense: {error!r}")
    broken.__cause__ = error
    return broken


def _has_unread(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        pass
    return True


def _gone(cause: OSError | None) -> GuestError:
    error = GuestError("the machine's agent is gone", hint="the machine has ended, or is about to: take another")
    error.__cause__ = cause
    return error
