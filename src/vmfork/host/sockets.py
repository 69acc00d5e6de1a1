"""Unix sockets by path: listen first, pass the descriptor, and nobody polls for the path to appear."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.config.endpoint import PATH_LIMIT
from vmfork.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket, as it was when the connection was made (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return cls(pid, uid)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket address: through a descriptor of its folder where it is too long."""
    if len(os.fsencode(path)) <= PATH_LIMIT:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen_unix(path: Path, *, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket that listens at `path`; who may connect is up to the folder's mode. The caller closes it."""
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        with _short(path) as name:
            listener.bind(name)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen at {path}: {error.strerror or error}") from error
    return listener


def connect_unix(path: Path, *, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A non-blocking socket connected to `path`: at once, since a listening socket takes the caller into its backlog.

    Raises `HostError` when nobody listens there. The caller closes it.
    """
    client = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        with _short(path) as name:
            client.connect(name)
    except OSError as error:
        client.close()
        raise HostError(f"cannot connect to {path}: {error.strerror or error}") from error
    return client
