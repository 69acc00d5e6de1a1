"""The raw baseline: the least that a correct fork costs on stock QEMU, by hand, without a line of vmfork.

It spawns QEMU with given arguments, passes descriptors, and speaks to the agent byte by byte as docs/reference/wire.md
has it: ADOPT, CLOCK, EXEC. Blocking sockets, no event loop, no checks beyond "it worked". What vmfork adds is measured
against this, so nothing of vmfork may be imported here (a test looks).
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

REQUEST, REPLY, ERROR, DATA = 1, 2, 3, 4
HELLO, EXEC, ADOPT, CLOCK, QUIESCE = 1, 3, 11, 12, 13

_SILENCE_LIMIT_S = 120


def frame(kind: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload), kind, stream) + payload


def fields(*values: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(value)) + value for value in values)


class Line:
    """A blocking conversation with one agent."""

    def __init__(self, sock: socket.socket) -> None:
        # A guest that never answers ends the measurement; set on the socket, it costs no system call per read.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _SILENCE_LIMIT_S, 0))
        self.sock = sock
        self.buffer = b""
        self.stream = 0

    def read(self, count: int) -> bytes:
        """The next bytes that the agent sent."""
        while len(self.buffer) < count:
            self.buffer += self._receive()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def _receive(self) -> bytes:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("the agent is gone")
        return data

    def call(self, opcode: int, payload: bytes, *, nonce: bytes = b"") -> tuple[bytes, bytes]:
        """The reply's payload, and the DATA that came before it."""
        self.stream += 1
        self.sock.sendall(frame(REQUEST, self.stream, bytes([opcode]) + payload))
        if nonce:
            while nonce not in self.buffer:
                self.buffer += self._receive()
            self.buffer = self.buffer.split(nonce, 1)[1]
        output = b""
        while True:
            length, kind, stream = struct.unpack(">IBI", self.read(9))
            body = self.read(length)
            if stream != self.stream:
                continue
            if kind == DATA:
                output += body[1:]
            elif kind == REPLY:
                return body, output
            elif kind == ERROR:
                raise RuntimeError(body)

    def hello(self) -> None:
        nonce = os.urandom(16)
        self.call(HELLO, fields(nonce, b"1"), nonce=nonce)

    def quiesce(self) -> None:
        self.call(QUIESCE, b"")

    def adopt(self, generation: uuid.UUID) -> None:
        self.call(
            ADOPT,
            fields(
                *(b"entropy", os.urandom(64)),
                *(b"generation", generation.hex.encode()),
                *(b"fork-id", b"raw"),
                *(b"template", b"raw"),
                *(b"hostname", b"raw"),
                *(b"machine-id", uuid.uuid4().hex.encode()),
                *(b"boot-id", str(uuid.uuid4()).encode()),
            ),
        )
        self.call(CLOCK, fields(str(time.time_ns()).encode()))

    def exec_true(self) -> None:
        reply, _ = self.call(EXEC, fields(b"", b"", b"", b"1", b"true"))
        assert b"exit" in reply, reply


@dataclass(frozen=True, slots=True)
class Source:
    """What a fork is made from: QEMU's arguments with `{memory}`, `{state}`, `{agent}`, `{qmp}`, `{console}` for the
    numbers of descriptors and `{generation}` for the generation id, and the files that are opened for it.
    """

    argv: Sequence[str]
    files: Mapping[str, str]


class Fork:
    """Owner of one QEMU, spawned from `source`."""

    def __init__(self, source: Source) -> None:
        self.generation = uuid.uuid4()
        self._sockets: list[socket.socket] = []
        opened = {name: os.open(path, os.O_RDWR) for name, path in source.files.items()}
        self._agent, self._qmp = self._listen("agent"), self._listen("qmp")
        ours, theirs = socket.socketpair()
        self._sockets.append(ours)
        fds = {
            **opened,
            "agent": self._agent.fileno(),
            "qmp": self._qmp.fileno(),
            "console": theirs.fileno(),
        }
        try:
            self.process = subprocess.Popen(
                [part.format(**fds, generation=self.generation) for part in source.argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=tuple(fds.values()),
                env={},
            )
        finally:
            theirs.close()
            for fd in opened.values():
                os.close(fd)
        self.agent = Line(self.connect(self._agent))
        # QEMU holds the listening socket open. Ours is the connection, which ends with QEMU.
        self._agent.close()

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\0raw-{name}-{uuid.uuid4().hex}")
        listener.listen(1)
        self._sockets.append(listener)
        return listener

    def connect(self, listener: socket.socket) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(listener.getsockname())
        self._sockets.append(client)
        return client

    def connect_monitor(self) -> socket.socket:
        """A connection to QEMU's monitor, which ends with the fork."""
        return self.connect(self._qmp)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(source: Source, *, adopt: bool = True) -> Fork:
    """A fork that ran its first program. Without `adopt` it is the twin of every other; the difference is adopting."""
    fork = Fork(source)
    try:
        if adopt:
            fork.agent.adopt(fork.generation)
        fork.agent.exec_true()
    except BaseException:
        fork.close()
        raise
    return fork


def time_one(source: Source, *, adopt: bool = True) -> float:
    """Seconds from nothing to the result of a fork's first program."""
    begun = time.perf_counter()
    fork = start(source, adopt=adopt)
    took = time.perf_counter() - begun
    fork.close()
    return took
