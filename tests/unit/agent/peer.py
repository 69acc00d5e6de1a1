"""The other end of a client's line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmfork.wire.frame import FrameParser, Kind, Opcode, decode_fields, encode_fields, encode_frame

if TYPE_CHECKING:
    import socket

    from vmfork.wire.frame import Frame


class Peer:
    """The other end of the line: takes frames one by one, sends what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)
        self._parser = FrameParser()
        self._frames: list[Frame] = []

    async def frame(self) -> Frame:
        while not self._frames:
            self._frames += self._parser.feed(await asyncio.get_running_loop().sock_recv(self.sock, 65536))
        return self._frames.pop(0)

    async def request(self, opcode: Opcode) -> tuple[int, tuple[bytes, ...]]:
        frame = await self.frame()
        assert (frame.kind, frame.payload[0]) == (Kind.REQUEST, opcode)
        return frame.stream, decode_fields(frame.payload[1:])

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def reply(self, stream: int, *fields: bytes) -> None:
        await self.send(encode_frame(Kind.REPLY, stream, encode_fields(*fields)))

    async def refuse(self, stream: int, code: bytes, errno: int = 0) -> None:
        await self.send(encode_frame(Kind.ERROR, stream, encode_fields(code, b"because", b"%d" % errno)))
