"""A tunnel by hand: one connection at a time over an agent's line, without a line of vmfork.

What comes on the listener is connected to a port of the guest, as docs/reference/wire.md has it: CONNECT. Blocking
sockets in a thread of its own. It grants credit at once, and counts none of its own: it is for single bytes.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST, REPLY, ERROR, DATA, EOF, CREDIT, EVENT = range(1, 8)
CONNECT = 23


class RawTunnel:
    """Owner of a listener that leads to `port` of the guest behind `line`, which it uses alone."""

    def __init__(self, line: socket.socket, port: int) -> None:
        self._line = line
        self._port = str(port).encode()
        self._held = b""
        self._stream = 1_000_000
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._stream += 1
                self._carry(client)

    def _send(self, kind: int, payload: bytes) -> None:
        self._line.sendall(struct.pack(">IBI", len(payload), kind, self._stream) + payload)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        self._held += self._line.recv(65536)
        while len(self._held) >= 9:
            length, kind, stream = struct.unpack_from(">IBI", self._held)
            if len(self._held) < 9 + length:
                return
            payload, self._held = self._held[9 : 9 + length], self._held[9 + length :]
            if stream == self._stream:
                yield kind, payload

    def _carry(self, client: socket.socket) -> None:
        self._send(REQUEST, bytes([CONNECT]) + struct.pack(">I", len(self._port)) + self._port)
        wanted = [self._line, client]
        while True:
            for ready in select.select(wanted, [], [])[0]:
                if ready is client:
                    data = client.recv(65536)
                    self._send(*((DATA, b"\0" + data) if data else (EOF, b"\0")))
                    wanted = [self._line, client] if data else [self._line]
                    continue
                for kind, payload in self._frames():
                    if kind == DATA:
                        client.sendall(payload[1:])
                        self._send(CREDIT, b"\0" + struct.pack(">I", len(payload) - 1))
                    elif kind in (REPLY, ERROR):
                        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
