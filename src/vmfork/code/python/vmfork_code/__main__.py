"""Somebody serves at the port that the door names, from now on: this process's child, or who did before.

`python3 FOLDER/vmfork_code FOLDER`. The door is a file: JSON with the port, the token that opens it and the version.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import sys
from contextlib import suppress

sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

from vmfork_code.kinds import VERSION  # noqa: E402 - it is where this was sent
from vmfork_code.server import Server  # noqa: E402


def main() -> int:
    """0 once somebody serves."""
    folder = sys.argv[1]
    os.umask(0o077)  # the token is root's alone
    with open(os.path.join(folder, "lock"), "w") as lock:
        # Of two that start at once, the second finds the first.
        fcntl.flock(lock, fcntl.LOCK_EX)
        door = os.path.join(folder, "door")
        if not _is_open(door):
            _open(door)
    return 0


def _is_open(door: str) -> bool:
    try:
        with open(door) as file:
            port = json.load(file)["port"]
        socket.create_connection(("127.0.0.1", port)).close()
    except (OSError, ValueError, LookupError):
        return False
    return True


def _open(door: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    local = _listen(os.path.join(os.path.dirname(door), "line"))
    token = secrets.token_hex(16)
    pid = os.fork()
    if pid == 0:
        _serve(listener, local, token)
    with open(door + ".new", "w") as file:
        json.dump({"version": VERSION, "port": listener.getsockname()[1], "token": token, "pid": pid}, file)
    os.replace(door + ".new", door)


def _listen(path: str) -> socket.socket:
    """At a Unix socket, which takes a host a quarter of the time under emulation that the port does."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a server that has ended
    local = socket.socket(socket.AF_UNIX)
    local.bind(path)
    local.listen()
    return local


def _serve(listener: socket.socket, local: socket.socket, token: str) -> None:
    """Never returns. It is a daemon, and holds nothing of who started it: neither the lock nor its streams."""
    try:
        os.setsid()
        os.umask(0o022)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in (listener.fileno(), local.fileno()):
                _close(fd)
        Server((listener, local), token).run()
    finally:
        os._exit(70)


def _close(fd: int) -> None:
    with suppress(OSError):  # it was the one that listed them
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
