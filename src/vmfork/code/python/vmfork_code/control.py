"""The side of an interpreter: its process, and its line to the server."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import suppress
from typing import Any, Protocol

from .kinds import DONE, MOST_ANSWER, RESULT, STARTED
from .line import HEAD

_CONTROL = 3
_STREAMS = (0, 1, 2)


class Worker(Protocol):
    """What runs code."""

    def run(self, asked: dict[str, Any]) -> None:
        """The code was run, and the server was told that it is done."""


class Control:
    """Requests one by one, and their answers."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        # Kept beside the streams, which code may close.
        self._kept = [os.dup(stream) for stream in _STREAMS]

    def next_request(self) -> dict[str, Any] | None:
        """The next; `None` when there will be none."""
        head = self._read(HEAD.size)
        payload = head and self._read(HEAD.unpack(head)[0])
        asked: dict[str, Any] | None = json.loads(payload) if payload else None
        return asked

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(min(size - len(data), 1 << 20))
            if not piece:
                return b""
            data += piece
        return bytes(data)

    def restore_streams(self) -> None:
        """The standard streams are what they were at first, whatever code has done to them."""
        for stream, kept in zip(_STREAMS, self._kept):
            os.dup2(kept, stream)

    def send_started(self) -> None:
        """An interrupt finds the code running from now on."""
        self._send(STARTED, b"")

    def send_result(self, data: dict[str, Any]) -> None:
        """The host is shown that, or what became of it when it is too large."""
        payload = json.dumps(data).encode()
        if len(payload) > MOST_ANSWER // 2:
            payload = json.dumps({"text/plain": f"<{len(payload)} bytes: too much to be shown>"}).encode()
        self._send(RESULT, payload)

    def send_done(
        self, *, value: str | None = None, error: dict[str, str] | None = None, is_lost: bool = False
    ) -> None:
        """The call is done."""
        self._send(DONE, json.dumps({"value": value, "error": error, "is_lost": is_lost}).encode())

    def _send(self, kind: int, payload: bytes) -> None:
        # Half a frame, after an interrupt, would be the end of the line.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            self._socket.sendall(HEAD.pack(len(payload), kind) + payload)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def change_env(env: dict[str, str | None]) -> None:
    """This process has the variables, and not those that are None."""
    for key, value in env.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def become(control: socket.socket, stdout: int, stderr: int) -> Control:
    """This child of the server holds nothing of it but its line. It leads a group that can be ended as a whole."""
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.dup2(control.fileno(), _CONTROL, inheritable=False)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > _CONTROL:
            with suppress(OSError):  # the one that lists them
                os.close(fd)
    # When memory is short, code goes before what serves it.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("300")
    with suppress(OSError):
        os.chdir(os.path.expanduser("~"))
    return Control(socket.socket(fileno=_CONTROL))
