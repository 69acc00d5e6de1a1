"""The socket that clients see: our own user and root only, in front of gRPC's socket.

gRPC for Python neither shows who is at the other end of a Unix socket nor takes a descriptor, so this accepts,
looks (SO_PEERCRED, unix(7)) and passes the bytes on: 0.1 ms a call (tests/unit/service measures it).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING

from vmfork.host.folders import make_private
from vmfork.host.sockets import Peer
from vmfork.service.base.claim import BACKLOG, listen

if TYPE_CHECKING:
    from pathlib import Path


class Inner:
    """Owner of `ENDPOINT.d`, 0700, where gRPC has its own socket. Made by whoever claimed the endpoint."""

    def __init__(self, endpoint: Path) -> None:
        self._folder = endpoint.with_name(endpoint.name + ".d")
        shutil.rmtree(self._folder, ignore_errors=True)  # a killed server's
        make_private(self._folder)
        self._fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """The socket's path as this process names it: short, since the path of a socket may not be long."""
        return f"/proc/self/fd/{self._fd}/grpc.sock"

    def close(self) -> None:
        """The folder is gone."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._fd)


class Front:
    """Owner of the listening socket at a claimed endpoint, and of every connection through it."""

    def __init__(self, endpoint: Path, inner: Inner) -> None:
        self.refused = 0
        self._endpoint = endpoint
        self._inner = inner
        self._connections: set[_Side] = set()
        self._joining: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Clients can connect. gRPC must listen already."""
        listener = listen(self._endpoint)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Outer(self), sock=listener, backlog=BACKLOG
        )

    def admits(self, peer: Peer) -> bool:
        """Whether this peer is served: our user and root."""
        if peer.uid in (0, os.getuid()):
            return True
        self.refused += 1
        return False

    def join(self, side: _Side) -> None:
        """What comes in at `side` goes to gRPC, and the answers back, once a connection for it is made."""
        task = asyncio.get_running_loop().create_task(self._connect_inner(side))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _connect_inner(self, side: _Side) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: _Side(self, other=side), self._inner.path)
        except OSError:
            side.end()

    def add(self, side: _Side) -> None:
        self._connections.add(side)

    def discard(self, side: _Side) -> None:
        self._connections.discard(side)

    async def aclose(self) -> None:
        """Clients cannot connect, and all connections are broken off."""
        if self._server is not None:
            self._server.close()
        for task in self._joining:
            task.cancel()
        await asyncio.gather(*self._joining, return_exceptions=True)
        for side in [*self._connections]:
            side.end()
        await asyncio.sleep(0)  # a transport that was aborted closes its socket in the loop's next turn
        if self._server is not None:
            await self._server.wait_closed()


class _Side(asyncio.Protocol):
    """One end of a connection; what it reads, the other writes. A slow reader stops the writer, not us."""

    def __init__(self, front: Front, other: _Side | None = None) -> None:
        self.front = front
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.front.add(self)
        other = self.other
        if other is None:
            return
        if other.transport is None or other.transport.is_closing():
            self.end()  # the client went while we connected
        else:
            other.other = self
            other.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        assert self.other.transport is not None  # nothing is read before both ends are there
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other is None or self.other.transport is None:
            return False
        if self.other.ended:
            self.other.transport.close()
            return False
        self.other.transport.write_eof()
        return True  # the other direction may go on

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002, RUF100
        self.front.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()  # what is buffered for it still goes out

    def end(self) -> None:
        """The connection is broken off."""
        if self.transport is not None:
            self.transport.abort()


class _Outer(_Side):
    """A client's end: looked at first, then joined to a connection of its own to gRPC."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        if not self.front.admits(Peer.of(transport.get_extra_info("socket"))):
            self.end()
            return
        self.transport.pause_reading()
        self.front.join(self)
