"""The raw baseline many times over; files by hand; and QEMU's monitor, spoken to by hand, which a peer needs."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmfork.bench.raw import DATA, ERROR, REPLY, REQUEST, Fork, Line, fields, frame, start, time_one

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from vmfork.api.vm import VM
    from vmfork.bench.raw import Source

# docs/reference/wire.md
_READ, _WRITE, _CONNECT = 5, 6, 23
_EOF, _CREDIT_FRAME, _CREDIT = 5, 6, 65_536
# Numbers that the library's own requests do not come to.
_OWN_STREAMS = 1 << 24


class Monitor:
    """A blocking conversation with one QEMU."""

    def __init__(self, sock: socket.socket) -> None:
        self._lines = sock.makefile("rwb")
        self._lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> object:
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._lines.flush()
        while line := self._lines.readline():
            told = json.loads(line)
            if "error" in told:
                raise RuntimeError(f"{command}: {told['error']['desc']}")
            if "return" in told:
                return told["return"]
        raise ConnectionError(f"{command}: QEMU is gone")


def time_many(source: Source, count: int) -> float:
    """Seconds until `count` forks, started at once, have all run their first program."""
    with ThreadPoolExecutor(count) as threads:
        begun = time.perf_counter()
        forks = list(threads.map(lambda _: start(source), range(count)))
        took = time.perf_counter() - begun
        list(threads.map(Fork.close, forks))
    return took


def forks_per_second(source: Source, total: int, *, concurrency: int) -> float:
    """How many forks a second are made, run a program and end, `concurrency` at a time."""
    with ThreadPoolExecutor(concurrency) as threads:
        begun = time.perf_counter()
        list(threads.map(lambda _: time_one(source), range(total)))
        return total / (time.perf_counter() - begun)


@contextmanager
def line_of(vm: VM) -> Iterator[Line]:
    """The very line to the machine's agent, spoken to by hand in the block, in which nothing else may use the machine.

    A machine of its own would be another one: it would lie in another control group, and have another place in the
    host's caches. The event loop stands still meanwhile, so that nobody else reads.
    """
    sock = vm._running.agent._line._sock  # noqa: SLF001 - nobody else may have it
    sock.setblocking(True)
    try:
        line = Line(sock)
        line.stream = _OWN_STREAMS
        yield line
    finally:
        sock.setblocking(False)


async def call_port(vm: VM, port: int) -> bytes:
    """What a program says that listens at the guest's port, to its end: one CONNECT, and nothing of ours between.

    The machine's line is spoken to by hand from now on: all that can be done with the machine then is to end it.
    """
    loop, sock = asyncio.get_running_loop(), vm._running.agent._line._sock  # noqa: SLF001 - nobody else may have it
    loop.remove_reader(sock)
    await loop.sock_sendall(sock, frame(REQUEST, _OWN_STREAMS, bytes([_CONNECT]) + fields(b"%d" % port)))
    held, answer = b"", b""
    while True:
        while len(held) < 9 or len(held) < 9 + int.from_bytes(held[:4]):
            held += await loop.sock_recv(sock, 65536)
        length, kind, stream = struct.unpack_from(">IBI", held)
        body, held = held[9 : 9 + length], held[9 + length :]
        if stream == _OWN_STREAMS and kind == ERROR:
            raise RuntimeError(body)
        if stream == _OWN_STREAMS and kind == _EOF:
            return answer
        if stream == _OWN_STREAMS and kind == DATA:
            answer += body[1:]


def write_file(line: Line, path: str, content: bytes) -> None:
    """The guest's file has the content: WRITE, and DATA as far as the agent's credit goes."""
    line.stream += 1
    request = bytes([_WRITE]) + fields(path.encode(), b"", b"", b"%d" % len(content))
    line.sock.sendall(frame(REQUEST, line.stream, request))
    rest, credit = memoryview(content), _CREDIT
    while rest:
        piece = rest[: min(credit, _CREDIT)]
        line.sock.sendall(frame(DATA, line.stream, b"\0" + piece))
        rest, credit = rest[len(piece) :], credit - len(piece)
        while not credit:
            credit += _take_credit(line)
    line.sock.sendall(frame(_EOF, line.stream, b"\0"))
    while _take_frame(line)[0] != REPLY:
        pass


def read_file(line: Line, path: str) -> int:
    """How many bytes the guest's file has, all of which came: READ, with credit for everything."""
    line.stream += 1
    allowed = frame(_CREDIT_FRAME, line.stream, struct.pack(">BI", 0, 0x7FFF_FFFF))
    line.sock.sendall(frame(REQUEST, line.stream, bytes([_READ]) + fields(path.encode(), b"0", b"")) + allowed)
    size = 0
    while True:
        kind, body = _take_frame(line)
        if kind == REPLY:
            return size
        size += len(body) - 1


def _take_frame(line: Line) -> tuple[int, bytes]:
    length, kind, _ = struct.unpack(">IBI", line.read(9))
    body = line.read(length)
    if kind == ERROR:
        raise RuntimeError(body)
    return kind, body


def _take_credit(line: Line) -> int:
    kind, body = _take_frame(line)
    return struct.unpack(">BI", body)[1] if kind == _CREDIT_FRAME else 0
