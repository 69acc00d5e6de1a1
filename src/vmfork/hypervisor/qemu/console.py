"""What a guest writes to its serial console: the end of it, kept in bounded memory and a bounded file."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEPT_BYTES = 64 * 1024
_READ_SIZE = 65_536
# All that may lie in the socket, as the kernel sizes it.
_READS_TO_EMPTY = 16
# How long nothing is read after a piece. A flood on the console leaves the event loop to other machines, and QEMU's
# single bytes are written to the file together.
REST_S = 0.005


class ConsoleTail:
    """Owner of the host end of a console. Reads all the time, so that a guest never blocks on it for long.

    `before` is what the file at `path` holds of an earlier reader. `total` counts the bytes read by this one. Once
    `on_text` was called, its callback hears of every time that the guest prints the text.
    """

    def __init__(self, end: socket.socket, path: Path, *, before: bytes = b"") -> None:
        self._socket = end
        self._path = path
        self._kept = bytearray(before[-KEPT_BYTES:])
        self._in_file = len(before)
        self.total = 0
        self._awaited: tuple[bytes, Callable[[], None]] | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._has_ended = False
        self._loop = asyncio.get_running_loop()
        end.setblocking(False)
        self._listen()

    def text(self) -> str:
        """The last 64 KiB at most, with what has arrived but was not read yet."""
        self._read()
        return self._kept[-KEPT_BYTES:].decode(errors="replace")

    def on_text(self, text: bytes, callback: Callable[[], None]) -> None:
        """The event loop calls `callback` when the guest prints `text`, and soon if it has printed it already."""
        self._awaited = (text, callback)
        if text in self._kept:
            self._loop.call_soon(callback)

    def close(self) -> None:
        """What came until now is kept; the socket is released. Closing again does nothing."""
        if self._socket.fileno() >= 0:
            self._read()
            self._stop_listening()
            self._socket.close()

    def drop(self) -> None:
        """The socket is released. For when the event loop that read it does not run any more."""
        if self._socket.fileno() >= 0 and not self._loop.is_closed():
            self._stop_listening()
        self._socket.close()

    def release(self) -> socket.socket:
        """The socket, for another reader to go on with; the caller closes it. What came until now is in the file."""
        self._read()
        self._stop_listening()
        end, self._socket = self._socket, socket.socket()
        self._socket.close()
        return end

    def _listen(self) -> None:
        self._resting = None
        self._loop.add_reader(self._socket, self._take_turn)

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._socket)
        if self._resting is not None:
            self._resting.cancel()
        self._resting = None

    def _take_turn(self) -> None:
        self._read(pieces=1)
        self._stop_listening()
        if not self._has_ended:
            self._resting = self._loop.call_later(REST_S, self._listen)

    def _read(self, *, pieces: int = _READS_TO_EMPTY) -> None:
        with suppress(BlockingIOError, ConnectionError, OSError):
            for _ in range(pieces):
                data = self._socket.recv(_READ_SIZE)
                if not data:
                    self._has_ended = True
                    self._stop_listening()
                    return
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._kept += data
        self.total += len(data)
        if self._awaited is not None and self._awaited[0] in self._kept[-len(data) - len(self._awaited[0]) + 1 :]:
            self._loop.call_soon(self._awaited[1])
        del self._kept[:-KEPT_BYTES]
        # The file starts anew with what is kept once it is twice as long as that: it stays bounded, and a reader
        # of it sees whole recent text.
        anew = self._in_file + len(data) > 2 * KEPT_BYTES
        piece = bytes(self._kept) if anew else data
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if anew else os.O_APPEND)
        with suppress(OSError):
            fd = os.open(self._path, flags, 0o600)
            try:
                os.write(fd, piece)
            finally:
                os.close(fd)
            self._in_file = len(piece) if anew else self._in_file + len(data)
