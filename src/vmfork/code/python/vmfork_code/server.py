"""Who asks for code to be run, by which interpreter, and whose turn it is."""

from __future__ import annotations

import hmac
import json
import selectors
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

from .context import LEFT_GRACE_S, Asked, Call, Context, failed
from .kinds import AGAIN, HELLO, INTERRUPT, MOST_REQUEST, RUN
from .languages import LANGUAGES
from .line import Line
from .selector import Selector

if TYPE_CHECKING:
    from collections.abc import Sequence


class Server:
    """One thread and one selector: its contexts, and the clients that have connected."""

    def __init__(self, listeners: Sequence[socket.socket], token: str) -> None:
        self._token = token.encode()
        self._selector = Selector()
        self._contexts: dict[tuple[str, str], Context] = {}
        # By the names that they gave themselves.
        self.clients: dict[bytes, Client] = {}
        for listener in listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, partial(self._accept, listener))

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

    def _accept(self, listener: socket.socket, _mask: int) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Client(self, sock)

    def find_context(self, language: str, name: str) -> Context:
        """The one of that name, begun where there is none."""
        key = language, name
        if key not in self._contexts:
            self._contexts[key] = Context(self._selector, LANGUAGES[language])
        return self._contexts[key]

    def make_line(self, sock: socket.socket, client: Client) -> Line:
        """What the client speaks over."""
        return Line(
            self._selector,
            sock,
            most=MOST_REQUEST,
            on_frame=client.on_frame,
            on_end=client.on_end,
            on_room=client.on_room,
        )

    def give_up(self, name: bytes, *, grace_s: float) -> None:
        """What the client of that name asked for ends. Where it has left, that is so already."""
        client = self.clients.get(name)
        if client is not None:
            client.give_up(grace_s=grace_s)

    def is_token(self, given: bytes) -> bool:
        """Whether it opens the door."""
        return hmac.compare_digest(given, self._token)


class Client:
    """One connection: one call at a time, of which the interpreter may answer most by itself."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._name: bytes | None = None
        self._call: Call | None = None
        self._is_given_up = False
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
            return self._greet(*payload.split(b" "))
        if self._name is None:
            return False
        if kind == INTERRUPT:
            seconds, name = payload.split(b" ")
            self._server.give_up(name, grace_s=float(seconds))
            return True
        if self._call is not None and self._call.is_open:
            return False
        if kind == RUN:
            self._run(Asked(**json.loads(payload)))
        elif kind == AGAIN and self._call is not None:
            self._run(self._call.asked.again(payload.decode()))
        else:
            return False
        return True

    def _greet(self, token: bytes, name: bytes) -> bool:
        if self._name is not None or name in self._server.clients or not self._server.is_token(token):
            return False
        self._name = name
        self._server.clients[name] = self
        return True

    def _run(self, asked: Asked) -> None:
        context = self._server.find_context(asked.language, asked.context)
        self._call = Call(self._line, asked, context)
        if self._is_given_up:
            self._call.answer(*failed("KeyboardInterrupt", "it was given up before it began"))
        else:
            context.ask(self._call)

    def give_up(self, *, grace_s: float) -> None:
        """What it asked for ends, also when that was not read yet. It asks for nothing more."""
        self._is_given_up = True
        if self._call is not None:
            self._call.context.interrupt(self._call, grace_s=grace_s)

    def on_end(self) -> None:
        """Whoever asked is gone: what runs for it is interrupted, and killed when it goes on."""
        if self._name is not None:
            del self._server.clients[self._name]
            self._name = None
        self.give_up(grace_s=LEFT_GRACE_S)

    def on_room(self) -> None:
        """The client takes what is written again."""
        if self._call is not None:
            self._call.context.let_on(self._call)
