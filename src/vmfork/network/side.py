"""One side of a conversation in HTTP: h11 with what it reads from and writes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h11

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# What servers of the web take; a program that sends more has gone astray.
MOST_HEAD = 32 * 1024
# RFC 9110, 7.6.1: these are for the next hop alone.
_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"proxy-authenticate", b"te", b"trailer",
    b"upgrade",
})  # fmt: skip
# These say how long a message is, and to whom it goes. That `Connection` names them as well is a way to smuggle.
_NEVER_NAMED = frozenset({b"content-length", b"transfer-encoding", b"host"})


class Side:
    """`role` is what we are there: `h11.SERVER` to a guest, `h11.CLIENT` to a host."""

    def __init__(
        self,
        role: type[h11.CLIENT | h11.SERVER],
        *,
        read: Callable[[], Awaitable[bytes]],
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self.line = h11.Connection(role, max_incomplete_event_size=MOST_HEAD)
        self._read = read
        self._write = write

    async def next_event(self) -> Any:
        """What the other side said next. Raises `h11.RemoteProtocolError` for what is no HTTP."""
        while (event := self.line.next_event()) is h11.NEED_DATA:
            self.line.receive_data(await self._read())
        return event

    async def send(self, event: Any) -> None:
        """It is on its way. Raises `h11.LocalProtocolError` for what does not fit what was sent before."""
        if data := self.line.send(event):
            await self._write(data)


def without_hops(headers: Any, *more: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that are for the other end: those of this hop, those that `Connection` names, and `more` left out."""
    named = {name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")}
    dropped = _HOP | (named - _NEVER_NAMED) | set(more)
    return [(name, value) for name, value in headers if name not in dropped]
