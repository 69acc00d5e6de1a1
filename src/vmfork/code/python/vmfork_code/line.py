"""Frames over a stream socket that never blocks: u32 length, u8 kind, then that many bytes, big-endian."""

from __future__ import annotations

import selectors
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .selector import Selector

HEAD = struct.Struct("!IB")
_PIECE = 65_536
# With more unsent the other side is slow: nothing more is taken for it until half of that has gone.
MUCH = 1 << 20


class Line:
    """One end of such a socket, until `close`. It ends with the socket, and at a frame of more than `most` bytes.

    `on_end` is called once then. `on_room` is called when no longer much is unsent.
    """

    def __init__(
        self,
        selector: Selector,
        sock: socket.socket,
        *,
        most: int,
        on_frame: Callable[[int, bytes], None],
        on_end: Callable[[], None],
        on_room: Callable[[], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self._selector = selector
        self._socket = sock
        self._most = most
        self._on_frame = on_frame
        self._on_end = on_end
        self._on_room = on_room
        self._come = bytearray()
        self._unsent = bytearray()
        self._mask = 0
        self._is_held = False
        self._is_taking = False
        self.is_closed = False
        self._follow()

    @property
    def is_full(self) -> bool:
        """Whether much was not sent yet."""
        return len(self._unsent) > MUCH

    @property
    def has_unsent(self) -> bool:
        """Whether anything was not sent yet."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """The descriptor of the socket, which another process may read from while it is lent."""
        return self._socket.fileno()

    def lend(self, on_end: Callable[[], None]) -> bool:
        """Whether another may read it now, until it is taken back. Not while anything that came is unread, or unsent.

        `on_end` is called once when the other side has ended meanwhile.
        """
        if self.is_closed or self._come or self._unsent:
            return False
        self.hold(is_held=True)
        self._selector.watch_end(self.fileno(), on_end)
        return True

    def take_back(self, data: bytes) -> None:
        """It is read here again, `data` first."""
        if not self.is_closed:
            self._selector.leave_end(self.fileno())
            self._come += data
            self.hold(is_held=False)

    def send(self, kind: int, payload: bytes = b"") -> None:
        """The frame is on its way, whether or not anyone takes it."""
        if self.is_closed:
            return
        self._unsent += HEAD.pack(len(payload), kind)
        self._unsent += payload
        self._flush()

    def hold(self, *, is_held: bool) -> None:
        """No frames are taken while it is held."""
        self._is_held = is_held
        self._follow()
        if not is_held:
            self._take_frames()

    def close(self) -> None:
        """The socket is closed, also for whom it is lent to. Again it does nothing."""
        if not self.is_closed:
            self._is_held, self._unsent = True, bytearray()
            self._follow()
            self._selector.leave_end(self.fileno())
            self.is_closed = True
            with suppress(OSError):  # the other side was faster
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def _follow(self) -> None:
        mask = (0 if self._is_held else selectors.EVENT_READ) | (selectors.EVENT_WRITE if self._unsent else 0)
        if self.is_closed or mask == self._mask:
            return
        if not self._mask:
            self._selector.register(self._socket, mask, self._on_ready)
        elif not mask:
            self._selector.unregister(self._socket)
        else:
            self._selector.modify(self._socket, mask, self._on_ready)
        self._mask = mask

    def _on_ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ and not self.is_closed:
            self._read()

    def _flush(self) -> None:
        was_full = self.is_full
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(memoryview(self._unsent)[:_PIECE])]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # nobody is there; reading will say so
        self._follow()
        if was_full and not self.is_full and self._on_room is not None:
            self._on_room()

    def read_rest(self) -> None:
        """What has come was taken."""
        while not self.is_closed and self._read():
            pass

    def _read(self) -> bool:
        """Whether something came."""
        data = b""
        with suppress(ConnectionError):
            try:
                data = self._socket.recv(_PIECE)
            except BlockingIOError:
                return False
        if not data:
            self._end()
            return False
        self._come += data
        self._take_frames()
        return True

    def _take_frames(self) -> None:
        """Whoever takes one may let go of what was held here: the next comes after that one, not in its middle."""
        if self._is_taking:
            return
        self._is_taking = True
        try:
            self._take_each()
        finally:
            self._is_taking = False

    def _take_each(self) -> None:
        while len(self._come) >= HEAD.size and not (self._is_held or self.is_closed):
            length, kind = HEAD.unpack_from(self._come)
            if length > self._most:
                self._end()
                return
            end = HEAD.size + length
            if len(self._come) < end:
                return
            payload = bytes(self._come[HEAD.size : end])
            del self._come[:end]
            self._on_frame(kind, payload)

    def _end(self) -> None:
        self.close()
        self._on_end()
