"""Metrics over HTTP, on a Unix socket or the loopback: `GET /metrics`, one answer a connection."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.service.base.claim import Claim, listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.config.endpoint import MetricsAddress

_log = logging.getLogger("vmfork")

_REQUEST_LIMIT_S = 5.0
# The loopback is open to every user of the host. Beyond this many, the oldest reader that has not asked yet is cut off:
# idle ones use up no descriptors, nor do they keep others out.
READER_LIMIT = 16


class Exposition:
    """Owner of the address where metrics are read. `render` gives content type and text for each reader.

    `setting` is how the address was named, for errors that ask for another one.
    """

    def __init__(
        self,
        address: MetricsAddress,
        render: Callable[[], Awaitable[tuple[str, bytes]]],
        *,
        setting: str = "[factory] metrics",
    ) -> None:
        self.address = str(address)
        self._hint = f"name another address: {setting}"
        self._where = address
        self._render = render
        self._server: asyncio.Server | None = None
        self._readers: dict[asyncio.StreamWriter, None] = {}  # oldest first
        self._claim: Claim | None = None

    async def open(self) -> None:
        """The address answers; `address` tells the port where 0 was asked for. Raises `HostError`, `StoreBusy`."""
        if self._where.path is not None:
            self._server = await self._open_unix()
            return
        try:
            self._server = await asyncio.start_server(self._answer, self._where.host, self._where.port)
        except OSError as error:
            raise HostError(
                f"cannot serve metrics at {self.address}: {os.strerror(error.errno or 0)}",
                hint=self._hint,
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def aclose(self) -> None:
        """The address is closed, and nothing is left there."""
        if self._server is not None:
            self._server.close()
        for reader in self._readers:
            reader.transport.abort()
        if self._claim is not None:
            self._claim.close()

    async def _open_unix(self) -> asyncio.Server:
        path = self._where.path
        assert path is not None
        self._claim = Claim.take(path, other="another server", hint=self._hint)
        return await asyncio.start_unix_server(self._answer, sock=listen(path))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._readers[writer] = None
        if len(self._readers) > READER_LIMIT:
            oldest = next(iter(self._readers))
            del self._readers[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(_REQUEST_LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._respond(head))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the reader went away, or asked nothing
        finally:
            self._readers.pop(writer, None)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _respond(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"only GET is known here\n")
        if target not in (b"/metrics", b"/"):
            return _response("404 Not Found", "text/plain", b"look at /metrics\n")
        try:
            kind, body = await self._render()
        except Exception as error:  # noqa: BLE001 - machines are served on, whatever keeps their numbers from being read
            _log.warning("the metrics were not read: %r", error)
            return _response("500 Internal Server Error", "text/plain", b"the metrics cannot be read now\n")
        return _response("200 OK", kind, body, head_only=method == b"HEAD")


def _response(status: str, kind: str, body: bytes, *, head_only: bool = False) -> bytes:
    lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", "", "")
    return "\r\n".join(lines).encode() + (b"" if head_only else body)
