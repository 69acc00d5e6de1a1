"""Many megabytes through a forwarded port, each way, with digests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmfork.aio import Template

_PORT = 9000
_BLOCK = os.urandom(1_000_000)
_LIMIT_S = 600.0
# What comes is answered by its digest; who says nothing and ends gets as many megabytes as asked for, and the digest.
_SERVER = f"""
import hashlib, os, socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        digest, came = hashlib.sha256(), False
        while data := self.request.recv(65536):
            digest.update(data)
            came = True
        block = os.urandom(1000000)
        for _ in range(0 if came else int(sys.argv[1])):
            digest.update(block)
            self.request.sendall(block)
        self.request.sendall(digest.digest())
socketserver.ThreadingTCPServer(("127.0.0.1", {_PORT}), Handler).serve_forever()
"""


async def pass_through(template: Template, megabytes: int) -> dict[str, Any]:
    """Seconds each way. Every byte arrived, and none changed."""
    async with template.fork() as vm, vm.start(["python3", "-c", _SERVER, str(megabytes)]), vm.forward(_PORT) as port:
        await vm.wait_for_port(_PORT, timeout_s=_LIMIT_S)
        async with asyncio.timeout(2 * _LIMIT_S):
            in_s = await _send(port.host_port, megabytes)
            out_s = await _receive(port.host_port, megabytes)
    return {"megabytes": megabytes, "in_s": round(in_s, 1), "out_s": round(out_s, 1)}


async def _send(port: int, megabytes: int) -> float:
    begun, digest = time.perf_counter(), hashlib.sha256()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(megabytes):
        digest.update(_BLOCK)
        writer.write(_BLOCK)
        await writer.drain()
    writer.write_eof()
    assert await reader.read() == digest.digest()
    writer.close()
    return time.perf_counter() - begun


async def _receive(port: int, megabytes: int) -> float:
    begun, digest = time.perf_counter(), hashlib.sha256()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write_eof()
    for _ in range(megabytes):
        digest.update(await reader.readexactly(len(_BLOCK)))
    assert await reader.read() == digest.digest()
    writer.close()
    return time.perf_counter() - begun
