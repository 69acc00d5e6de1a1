"""A socket of the host's and a connection to a guest, made one."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from vmfork.agent.deadline import deadline
from vmfork.agent.exchange import CHUNK_SIZE, quiet_future
from vmfork.agent.tunnel import tunnel_of
from vmfork.errors import VMForkError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from vmfork.agent.tunnel import GuestConnection

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger, socket(7)
_CONNECT_LIMIT_S = 30.0


class End(Protocol):
    """One of the two that are made one: bytes come from it, and go to it. Each raises what ended it."""

    @property
    def room(self) -> int:
        """How many bytes `put` may be given now."""

    def put(self, data: bytes) -> int:
        """How many of them are on their way; fewer than all where it has no more room."""

    def end(self) -> None:
        """Nothing more comes for it."""

    def peek(self, most: int) -> bytes | None:
        """What came from it, `most` bytes of that; empty at its end, `None` while nothing does."""

    def drop(self, count: int) -> None:
        """The first `count` bytes of that were passed on."""

    def follow(self, callback: Callable[[], None]) -> None:
        """`callback` is called when one of these may have changed."""

    def leave(self, callback: Callable[[], None]) -> None:
        """`callback` is not called any more."""


class SocketEnd:
    """A socket of the host's. It holds no bytes: the kernel does.

    Whether it is ready stays noted until a call says otherwise. The loop watches it only where that is waited for.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._is_readable = self._is_watched = self._is_full = False
        self._callback: Callable[[], None] = _do_nothing

    @property
    def room(self) -> int:
        return 0 if self._is_full else CHUNK_SIZE

    def put(self, data: bytes) -> int:
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            self._is_full = True
            self._loop.add_writer(self._sock, self._note_writable)
        return sent

    def end(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def peek(self, most: int) -> bytes | None:
        """One piece each time that the loop finds some: others have their turn."""
        if not self._is_readable:
            return None
        self._is_readable = False
        try:
            data = self._sock.recv(most)
        except (BlockingIOError, InterruptedError):
            data = None
        self._watch(data != b"")
        return data

    def drop(self, count: int) -> None:
        """It was taken from the kernel already; whoever has room takes all of it."""

    def follow(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._watch(True)

    def leave(self, _callback: Callable[[], None]) -> None:
        self._watch(False)
        self._loop.remove_writer(self._sock)

    def _watch(self, wanted: bool) -> None:
        if wanted and not self._is_watched:
            self._loop.add_reader(self._sock, self._note_readable)
        elif self._is_watched and not wanted:
            self._loop.remove_reader(self._sock)
        self._is_watched = wanted

    def _note_readable(self) -> None:
        self._is_readable = True
        self._callback()
        if self._is_readable:  # nobody has room for it
            self._watch(False)

    def _note_writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._is_full = False
        self._callback()


def _do_nothing() -> None:
    pass


class _Way:
    """What comes from one goes to the other, as far as that has room."""

    def __init__(self, source: End, sink: End) -> None:
        self._source = source
        self._sink = sink
        self.has_ended = False

    def pump(self) -> None:
        while not self.has_ended and (room := self._sink.room):
            data = self._source.peek(room)
            if data is None:
                return
            if data:
                self._source.drop(self._sink.put(data))
            else:
                self._sink.end()
                self.has_ended = True


@contextmanager
def _joined(one: End, other: End) -> Iterator[asyncio.Future[None]]:
    """What comes from either goes to the other, without a task: whatever wakes the loop has passed bytes on.

    Gives what is done when both have ended, or fails when one was lost.
    """
    ended: asyncio.Future[None] = quiet_future()
    ways = (_Way(one, other), _Way(other, one))

    def work() -> None:
        if ended.done():
            return
        try:
            for way in ways:
                way.pump()
        except (OSError, VMForkError) as error:
            ended.set_exception(error)
        else:
            if all(way.has_ended for way in ways):
                ended.set_result(None)

    one.follow(work)
    other.follow(work)
    try:
        work()
        yield ended
    finally:
        one.leave(work)
        other.leave(work)


async def serve(client: socket.socket, connect: Callable[[], Awaitable[GuestConnection]]) -> None:
    """The client was spliced with what `connect` gives. It is reset where that fails or is lost, and on cancel."""
    is_whole = False
    try:
        without_delay(client)
        connection = await connect()
        try:
            await splice(client, connection)
            is_whole = True
        finally:
            await connection.abort()  # behind both ends that changes nothing
    except (VMForkError, OSError):
        pass  # the client is told by the reset
    finally:
        if not is_whole:
            reset_on_close(client)


async def splice(client: socket.socket, connection: GuestConnection) -> None:
    """What either sent went to the other, until both had ended, or one was lost: then the other is reset.

    Closes neither. The connection need not stand yet: it has 30 seconds for that.
    """
    tunnel = tunnel_of(connection)
    try:
        with _joined(SocketEnd(client), tunnel) as ended:
            async with deadline(f"connecting to port {connection.port} of the guest", _CONNECT_LIMIT_S):
                await tunnel.connected
            await ended
        await connection.wait_closed()
    except (OSError, VMForkError):
        reset_on_close(client)
        await connection.abort()


async def join(one: GuestConnection, other: GuestConnection) -> None:
    """As `splice`, for two connections to guests. Raises what ended one; then the caller gives both up."""
    tunnels = tunnel_of(one), tunnel_of(other)
    with _joined(*tunnels) as ended:
        async with deadline("connecting one guest to another", _CONNECT_LIMIT_S):
            for tunnel in tunnels:
                await tunnel.connected
        await ended
    await one.wait_closed()
    await other.wait_closed()


def without_delay(client: socket.socket) -> None:
    """Small pieces are sent as they come."""
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def reset_on_close(client: socket.socket) -> None:
    """Closed, the socket tells its peer that the other side was lost. A Unix socket has no such word."""
    if client.family != socket.AF_UNIX:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
