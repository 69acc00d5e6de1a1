"""The socket to an agent: bytes out without a task, frames in as they come."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from vmfork.errors import GuestError, ProtocolError
from vmfork.wire.frame import FrameParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.wire.frame import Frame

_READ_SIZE = 65_536


class Line:
    """Owns a connected socket. `on_frame` is called for every frame, `on_lost` once, when the line ends by itself.

    It works with the reader and writer callbacks of the event loop it was made on: a request costs one `send`, an
    answer one wake-up and one `recv`.
    """

    def __init__(
        self, sock: socket.socket, *, on_frame: Callable[[Frame], None], on_lost: Callable[[Exception], None]
    ) -> None:
        sock.setblocking(False)
        self.parser = FrameParser()
        self._sock = sock
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._unsent = bytearray()
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

    def close(self) -> None:
        """The socket is closed; no callback comes any more. Closing twice is no error."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._unsent.clear()

    def drop(self) -> None:
        """The socket is closed. For when the event loop that read it does not run any more."""
        if self._is_open and not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
        self._is_open = False
        self._sock.close()

    @property
    def is_quiet(self) -> bool:
        """Nothing is half sent or half received, and nothing waits to be read."""
        return self._is_open and not self._unsent and self.parser.is_idle and not _has_unread(self._sock)

    def release(self) -> socket.socket:
        """The socket, for somebody else to speak over; no callback comes any more."""
        sock, self._sock = self._sock, self._sock.dup()
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        self._is_open = False
        self._sock.close()
        return sock

    def _lose(self, reason: Exception) -> None:
        self.close()
        self._on_lost(reason)

    def _send_now(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            # The loop tells it, not `send` itself: whoever sends is still setting its request up.
            self._loop.call_soon(self._lose_if_open, error)
            return len(data)

    def _lose_if_open(self, error: OSError) -> None:
        if self._is_open:
            self._lose(_gone(error))

    def _write(self) -> None:
        del self._unsent[: self._send_now(self._unsent)]
        if not self._unsent and self._is_open:
            self._loop.remove_writer(self._sock)

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
        self._take(data)

    def _take(self, data: bytes) -> None:
        try:
            for frame in self.parser.feed(data):
                self._on_frame(frame)
                if not self._is_open:
                    return
        except ProtocolError as error:
            self._lose(error)
        except Exception as error:  # noqa: BLE001 - whatever a guest makes of us, its calls end with it and do not wait
            broken = ProtocolError(f"what the agent in the guest sent makes no sense: {error!r}")
            broken.__cause__ = error
            self._lose(broken)


def _has_unread(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        pass
    return True


def _gone(cause: OSError | None) -> GuestError:
    error = GuestError("the machine's agent is gone")
    error.__cause__ = cause
    return error
