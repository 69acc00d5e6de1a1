"""The side of an interpreter: its process, its line to the server, and the host's line while that is lent to it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from .kinds import AGAIN, DONE, LEND, MOST_ANSWER, RESULT, RETURN, RETURNED, RUN, VALUE
from .line import HEAD
from .page import PASSED, RUNNING

if TYPE_CHECKING:
    from .page import Page

_CONTROL = 3
_STREAMS = (0, 1, 2)
# The standard streams are known by a signal that is set for each, and never sent. fstat(2) takes four times as long.
_F_SETSIG, _F_GETSIG = 10, 11
_MARKS = (61, 62, 63)
_tell = fcntl.fcntl
_PIECE = 65_536
# More goes by the server, which waits for a host that is slow, and for others meanwhile.
_MOST_DIRECT = 16_384
_SEND_LIMIT_S = 30.0
# What an interpreter keeps open lies above what code and its programs number from.
_ABOVE = 10


# Code, what has changed of the environment (None for what is gone), and whether the machine was forked since the last.
Request = tuple[str, dict[str, "str | None"], bool]
_NO_ENV: dict[str, str | None] = {}


class Worker(Protocol):
    """What runs code."""

    def run(self, asked: Request) -> None:
        """The code was run, and whoever asked was told that it is done."""


class Control:
    """Requests one by one, and their answers.

    A request comes by the server, or by the host's own line, which the server lends out after it has answered on it.
    What comes there and is more than code to run goes back to the server, with the line. An answer goes straight to
    the host when the call has written nothing; otherwise by the server, behind what was written.
    """

    def __init__(self, sock: socket.socket, page: Page, outputs: select.epoll) -> None:
        self._socket = sock
        self.page = page
        self._outputs = outputs
        self._lent: socket.socket | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._unsent = bytearray()
        self._is_direct = False
        self._passed = 0
        # Kept beside the streams, which code may close.
        self._kept = [os.dup(stream) for stream in _STREAMS]
        for stream, mark in zip(_STREAMS, _MARKS):
            fcntl.fcntl(stream, _F_SETSIG, mark)

    def next_request(self) -> Request | None:
        """The next; `None` when there will be none."""
        while True:
            ready = self._poll.poll()
            if len(ready) == 1 and ready[0][0] != _CONTROL:
                code = self._read_code()
                if code is not None:
                    return code, _NO_ENV, False
                continue
            kind, payload, fds = self._read_frame()
            if kind == RUN:
                self._is_direct, self.page.is_running = False, True
                asked = json.loads(payload)
                return asked["code"], asked["env"], asked["is_forked"]
            if kind == LEND:
                self._lent = socket.socket(fileno=fds[0])
                self._poll.register(self._lent, select.POLLIN)
            elif kind == RETURN:
                self._give_back(b"")
            else:
                return None

    def _read_code(self) -> str | None:
        """What the host's line says to run; `None` where it says anything else, and was given back."""
        assert self._lent is not None
        # Before it is read: if this process ends from here on, the call ends with it.
        words = self.page.words
        self._passed = words[PASSED]
        words[RUNNING] = self._is_direct = True
        data = b""
        try:
            data = self._lent.recv(_PIECE)
            if len(data) >= HEAD.size and HEAD.unpack_from(data) == (len(data) - HEAD.size, AGAIN):
                return data[HEAD.size :].decode()
        except (OSError, UnicodeDecodeError):
            pass  # the server finds out what it is
        self.page.is_running = False
        self._give_back(data)
        return None

    def _give_back(self, data: bytes) -> None:
        """The host's line is the server's again. Where it is already, nothing is done."""
        if self._lent is not None:
            self._poll.unregister(self._lent)
            self._lent.close()
            self._lent = None
            self._put(RETURNED, data)
            self._flush()

    def _read_frame(self) -> tuple[int, bytes, list[int]]:
        head, fds, _, _ = socket.recv_fds(self._socket, HEAD.size, 1, socket.MSG_CMSG_CLOEXEC)
        head += self._read(HEAD.size - len(head)) if head else b""
        if len(head) < HEAD.size:
            return -1, b"", []
        size, kind = HEAD.unpack(head)
        return kind, self._read(size), fds

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(min(size - len(data), 1 << 20))
            if not piece:
                break
            data += piece
        return bytes(data)

    def restore_streams(self) -> bool:
        """The standard streams are what they were at first, whatever code has done to them: whether it had."""
        try:
            if (_tell(0, _F_GETSIG), _tell(1, _F_GETSIG), _tell(2, _F_GETSIG)) == _MARKS:
                return False
        except OSError:
            pass  # one is closed
        for stream, kept in zip(_STREAMS, self._kept):
            os.dup2(kept, stream)
        return True

    @property
    def is_stopped(self) -> bool:
        """Whether the call is to end: an interrupt that came before it ran found nobody."""
        return self.page.is_stopped

    def send_result(self, data: dict[str, Any]) -> None:
        """The host is shown that, or what became of it when it is too large."""
        payload = json.dumps(data).encode()
        if len(payload) > MOST_ANSWER // 2:
            payload = json.dumps({"text/plain": f"<{len(payload)} bytes: too much to be shown>"}).encode()
        self._put(RESULT, payload)
        if len(self._unsent) > _MOST_DIRECT:
            self._is_direct = False
            self._flush()

    def send_value(self, text: str) -> None:
        """The call is done; the text is its value, which has no other form."""
        payload = text.encode()
        if self._is_direct and not self._unsent and len(payload) <= _MOST_DIRECT and self._is_quiet():
            words = self.page.words
            words[RUNNING] = 0
            # What is written from here on is nobody's, and the server does not write to the line.
            if self._is_quiet():
                self._unsent += HEAD.pack(len(payload), VALUE) + payload
                self._answer()
                return
            words[RUNNING] = 1
        self._end(VALUE, payload)

    def send_done(self, *, value: str | None = None, error: dict[str, str] | None = None) -> None:
        """The call is done."""
        self._end(DONE, json.dumps({"value": value, "error": error}).encode())

    def _end(self, kind: int, payload: bytes) -> None:
        self._put(kind, payload)
        if self._is_direct and len(self._unsent) <= _MOST_DIRECT and self._is_quiet():
            self.page.is_running = False
            # What is written from here on is nobody's, and the server does not write to the line.
            if self._is_quiet():
                self._answer()
                return
            self.page.is_running = True
        self._flush()

    def _is_quiet(self) -> bool:
        """Whether nothing was written since the call began."""
        passed = self.page.words[PASSED]
        return passed == self._passed and not passed & 1 and not self._outputs.poll(0)

    def _answer(self) -> None:
        assert self._lent is not None
        try:
            sent = self._lent.send(self._unsent)
        except OSError:
            sent = 0
        if sent < len(self._unsent):
            self._answer_slowly(self._lent, sent)
        self._unsent.clear()

    def _answer_slowly(self, lent: socket.socket, sent: int) -> None:
        """Where nobody is there, or takes it, the server finds the end of the line."""
        try:
            lent.settimeout(_SEND_LIMIT_S)
            lent.sendall(self._unsent[sent:])
        except OSError:
            with suppress(OSError):
                lent.shutdown(socket.SHUT_RDWR)

    def _put(self, kind: int, payload: bytes) -> None:
        self._unsent += HEAD.pack(len(payload), kind) + payload

    def _flush(self) -> None:
        # Half a frame, after an interrupt, would be the end of the line.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        try:
            self._socket.sendall(self._unsent)
            self._unsent.clear()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def change_env(env: dict[str, str | None]) -> None:
    """This process has the variables, and not those that are None."""
    for key, value in env.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def become(control: socket.socket, stdout: int, stderr: int, page: Page, outputs: select.epoll) -> Control:
    """This child of the server holds nothing of it but its line. It leads a group that can be ended as a whole."""
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    kept = fcntl.fcntl(outputs.fileno(), fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.dup2(control.fileno(), _CONTROL, inheritable=False)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > _CONTROL and fd != kept:
            with suppress(OSError):  # the one that lists them
                os.close(fd)
    # When memory is short, code goes before what serves it.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("300")
    with suppress(OSError):
        os.chdir(os.path.expanduser("~"))
    return Control(socket.socket(fileno=_CONTROL), page, select.epoll.fromfd(kept))
