"""Who asks for code to be run, by which interpreter, and whose turn it is."""

from __future__ import annotations

import hmac
import json
import selectors
import signal
import socket
import time

from .context import Asked, Call, Context
from .kinds import HELLO, INTERRUPT, KILL, MOST_REQUEST, RUN
from .languages import LANGUAGES
from .line import Line


class Server:
    """One thread and one selector: its contexts, and the clients that have connected."""

    def __init__(self, listener: socket.socket, token: str) -> None:
        self._listener = listener
        self._token = token.encode()
        self._selector = selectors.DefaultSelector()
        self._contexts: dict[tuple[str, str], Context] = {}
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Never returns."""
        # An interpreter sets its own; a shell inherits what is ignored.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        while True:
            for key, mask in self._selector.select(self._find_pause()):
                # An earlier event may have ended whose this is, and its descriptor may be another's.
                if self._selector.get_map().get(key.fd) is key:
                    key.data(mask)
            now = time.monotonic()
            for context in self._contexts.values():
                context.kill_late(now)

    def _find_pause(self) -> float | None:
        ends = [context.kill_at for context in self._contexts.values() if context.kill_at is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _accept(self, _mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _Client(self, sock)

    def find_context(self, language: str, name: str) -> Context:
        """The one of that name, begun where there is none."""
        key = language, name
        if key not in self._contexts:
            self._contexts[key] = Context(self._selector, LANGUAGES[language])
        return self._contexts[key]

    def make_line(self, sock: socket.socket, client: _Client) -> Line:
        """What the client speaks over."""
        return Line(
            self._selector,
            sock,
            most=MOST_REQUEST,
            on_frame=client.on_frame,
            on_end=client.on_end,
            on_room=client.on_room,
        )

    def is_token(self, given: bytes) -> bool:
        """Whether it opens the door."""
        return hmac.compare_digest(given, self._token)


class _Client:
    """One connection: one call at a time."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._is_known = False
        self._call: Call | None = None
        self._line = server.make_line(sock, self)

    def on_frame(self, kind: int, payload: bytes) -> None:
        """What is no sense ends the connection: another program of the guest connected, or another version."""
        try:
            makes_sense = self._take(kind, payload)
        except (LookupError, TypeError, ValueError):
            makes_sense = False
        if not makes_sense:
            self._line.close()
            self.on_end()

    def _take(self, kind: int, payload: bytes) -> bool:
        if kind == HELLO:
            self._is_known = self._server.is_token(payload)
            return self._is_known
        if self._is_known and kind == RUN and not (self._call and self._call.is_open):
            self._run(Asked(**json.loads(payload)))
        elif self._is_known and kind in (INTERRUPT, KILL):
            self._interrupt(float(payload) if kind == INTERRUPT else 0.0)
        else:
            return False
        return True

    def _run(self, asked: Asked) -> None:
        context = self._server.find_context(asked.language, asked.context)
        self._call = Call(self._line, asked, context)
        context.ask(self._call)

    def _interrupt(self, grace_s: float) -> None:
        if self._call is not None:
            self._call.context.interrupt(self._call, grace_s=grace_s)

    def on_end(self) -> None:
        """Whoever asked is gone: what runs for it is interrupted, and killed when it goes on."""
        if self._call is not None:
            self._call.context.interrupt(self._call, grace_s=5.0)

    def on_room(self) -> None:
        """The client takes what is written again."""
        if self._call is not None and self._call.is_open:
            self._call.context.hold(is_held=False)
