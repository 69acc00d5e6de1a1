"""The socket that clients see: one server each, its own user and root only, in front of gRPC's socket.

gRPC for Python neither shows who is at the other end of a Unix socket nor takes a descriptor, so this accepts,
looks (SO_PEERCRED, unix(7)) and passes the bytes on: 0.1 ms a call (tests/unit/service/test_front.py measures it).

```
ENDPOINT                 0600, the socket; gone when the server ended in order
ENDPOINT.lock            flock: held while the server lives; holds "process PID"
ENDPOINT.d/grpc.sock     0700/, gRPC's own
```
Who has the lock owns the other two: what a killed server left is removed by the next.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmfork.errors import HostError, StoreBusy
from vmfork.host.folders import make_private
from vmfork.host.lock import FileLock, read_holder

if TYPE_CHECKING:
    from pathlib import Path

_BACKLOG = 128
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, when it did."""

    pid: int
    uid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return cls(pid, uid)


class Claim:
    """Owner of an endpoint: no other server can have it. Nobody listens there yet."""

    def __init__(self, endpoint: Path, lock: FileLock, inner_folder: Path) -> None:
        self.endpoint = endpoint
        self._lock = lock
        self._inner_folder = inner_folder
        self._inner_fd = os.open(inner_folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def take(cls, endpoint: Path) -> Self:
        """The endpoint is ours, and what a killed server left there is gone.

        `StoreBusy` names the server that has it; `HostError` when others may write to its folder, or what stands there
        is no socket. Nothing was changed then.
        """
        check_folder(endpoint)
        lock_path = endpoint.with_name(endpoint.name + ".lock")
        lock = FileLock.try_acquire(lock_path, holder=f"process {os.getpid()}")
        if lock is None:
            raise StoreBusy(
                f"the socket {endpoint}",
                f"another VM cache server, {read_holder(lock_path)}",
                hint="use that one, end it (vmfork factory destroy), or name another: [factory] endpoint",
            )
        with ExitStack() as on_failure:
            on_failure.callback(lock.close)
            if endpoint.exists() and not stat.S_ISSOCK(endpoint.lstat().st_mode):
                raise HostError(f"{endpoint} exists and is not a socket", hint="move it, or name another endpoint")
            endpoint.unlink(missing_ok=True)
            inner_folder = endpoint.with_name(endpoint.name + ".d")
            shutil.rmtree(inner_folder, ignore_errors=True)
            claim = cls(endpoint, lock, make_private(inner_folder))
            on_failure.pop_all()
        return claim

    @property
    def inner(self) -> str:
        """Where gRPC listens, as this process names it: short, since the path of a socket may not be long."""
        return f"/proc/self/fd/{self._inner_fd}/grpc.sock"

    def close(self) -> None:
        """Nothing is left at the endpoint, and it is free."""
        self.endpoint.unlink(missing_ok=True)
        shutil.rmtree(self._inner_folder, ignore_errors=True)
        os.close(self._inner_fd)
        # Removed while held: whoever waits for it finds that it is no longer at its path, and makes another.
        self._lock.path.unlink(missing_ok=True)
        self._lock.close()


class Front:
    """Owner of the listening socket at a claimed endpoint, and of every connection through it."""

    def __init__(self, claim: Claim) -> None:
        self.endpoint = claim.endpoint
        self.refused = 0
        self._inner = claim.inner
        self._connections: set[_Side] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Clients can connect. gRPC must listen already."""
        listener = listen(self.endpoint)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Outer(self), sock=listener, backlog=_BACKLOG
        )

    def admits(self, peer: Peer) -> bool:
        """Whether this peer is served: our user and root."""
        if peer.uid in (0, os.getuid()):
            return True
        self.refused += 1
        return False

    async def connect_inner(self, side: _Side) -> None:
        """What comes in at `side` goes to gRPC, and the answers back."""
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: _Side(self, other=side), self._inner)
        except OSError:
            side.end()

    def add(self, side: _Side) -> None:
        self._connections.add(side)

    def discard(self, side: _Side) -> None:
        self._connections.discard(side)

    async def aclose(self) -> None:
        """Nobody can connect, and whoever was connected is not any more."""
        if self._server is not None:
            self._server.close()
        for side in [*self._connections]:
            side.end()
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

    def __init__(self, front: Front) -> None:
        super().__init__(front)
        self._joining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        if not self.front.admits(Peer.of(transport.get_extra_info("socket"))):
            self.end()
            return
        self.transport.pause_reading()
        self._joining = asyncio.get_running_loop().create_task(self.front.connect_inner(self))


def listen(endpoint: Path) -> socket.socket:
    """A listening socket at `endpoint` that was never open to others: its mode is set before anybody can connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(endpoint))
        endpoint.chmod(0o600)  # connecting needs listen(2), which comes after
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen at {endpoint}: {error.strerror or error}") from error
    return listener


def check_folder(endpoint: Path) -> None:
    """The socket's folder exists (made 0700 where it did not), and only we or root can change what is in it."""
    folder = endpoint.parent
    try:
        if not folder.exists():
            make_private(folder)
        info = folder.stat()
    except OSError as error:
        raise HostError(f"cannot use the folder {folder}: {error.strerror}") from error
    if info.st_uid not in (0, os.getuid()) or stat.S_IMODE(info.st_mode) & 0o022:
        raise HostError(
            f"others may write to the folder {folder}: they could put another server in its place",
            hint="name a socket in a folder of your own: [factory] endpoint",
        )
