"""A socket's path that is one server's own, whatever a killed server left there.

```
ENDPOINT         0600, the socket; gone when the server ended in order
ENDPOINT.lock    flock: held while the server lives; holds "process PID"
```
The holder of the lock owns the socket. A killed server leaves both, and the next server removes them.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from vmfork.errors import HostError, StoreBusy
from vmfork.host.folders import make_private
from vmfork.host.lock import FileLock, read_holder

if TYPE_CHECKING:
    from pathlib import Path

BACKLOG = 128


class Claim:
    """Owner of an endpoint: no other server can have it. No socket is there yet."""

    def __init__(self, endpoint: Path, lock: FileLock) -> None:
        self.endpoint = endpoint
        self._lock = lock

    @classmethod
    def take(cls, endpoint: Path, *, other: str, hint: str) -> Self:
        """The endpoint is ours, and what a killed server left there is gone.

        Raises `StoreBusy`, with `hint`, when `other`, such as "another VM cache server", has it, and names its process.
        Raises `HostError` when others may write to its folder, or what stands there is no socket. Nothing was changed
        then.
        """
        check_folder(endpoint)
        lock_path = endpoint.with_name(endpoint.name + ".lock")
        lock = FileLock.try_acquire(lock_path, holder=f"process {os.getpid()}")
        if lock is None:
            raise StoreBusy(f"the socket {endpoint}", f"{other}, {read_holder(lock_path)}", hint=hint)
        with ExitStack() as on_failure:
            on_failure.callback(lock.close)
            if endpoint.exists() and not stat.S_ISSOCK(endpoint.lstat().st_mode):
                raise HostError(f"{endpoint} exists and is not a socket", hint="move it, or name another endpoint")
            endpoint.unlink(missing_ok=True)
            on_failure.pop_all()
        return cls(endpoint, lock)

    def close(self) -> None:
        """Nothing is left at the endpoint, and it is free."""
        self.endpoint.unlink(missing_ok=True)
        # The file is removed while it is locked: a server that waits for the lock finds it gone, and makes another.
        self._lock.path.unlink(missing_ok=True)
        self._lock.close()


def listen(endpoint: Path) -> socket.socket:
    """A listening socket at `endpoint` that was never open to others: its mode is set before anybody can connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(endpoint))
        endpoint.chmod(0o600)  # connecting needs listen(2), which comes after
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen at {endpoint}: {error.strerror or error}") from error
    return listener


def check_folder(endpoint: Path) -> None:
    """The socket's folder exists, and only we or root can change what is in it. Where it was missing, it has 0700."""
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
