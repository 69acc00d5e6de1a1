"""The raw baseline: the least that a correct fork costs on stock QEMU, by hand, without a line of vmfork.

It spawns QEMU with given arguments, passes descriptors, and speaks to the agent byte by byte as docs/reference/wire.md
has it: ADOPT, CLOCK, EXEC. Blocking sockets, no event loop, no checks beyond "it worked". What vmfork adds is measured
against this.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
import uuid

REQUEST, REPLY, ERROR, DATA = 1, 2, 3, 4
HELLO, EXEC, ADOPT, CLOCK, QUIESCE = 1, 3, 11, 12, 13


def frame(kind: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload), kind, stream) + payload


def fields(*values: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(value)) + value for value in values)


class Line:
    """A blocking conversation with one agent."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.stream = 0

    def _read(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the agent is gone")
            self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def call(self, opcode: int, payload: bytes, *, nonce: bytes = b"") -> tuple[bytes, bytes]:
        """The reply's payload, and the DATA that came before it."""
        self.stream += 1
        self.sock.sendall(frame(REQUEST, self.stream, bytes([opcode]) + payload))
        if nonce:
            while nonce not in self.buffer:
                self.buffer += self.sock.recv(65536)
            self.buffer = self.buffer.split(nonce, 1)[1]
        output = b""
        while True:
            length, kind, stream = struct.unpack(">IBI", self._read(9))
            body = self._read(length)
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
        assert b"exit" in reply


class Fork:
    """One QEMU, spawned with `argv` after the numbers of its descriptors were filled in."""

    def __init__(self, argv: list[str], *, files: dict[str, str], log: int = subprocess.DEVNULL) -> None:
        fds: dict[str, int] = {}
        self.agent_listener = socket.socket(socket.AF_UNIX)
        self.agent_listener.bind(f"\0raw-agent-{uuid.uuid4().hex}")
        self.agent_listener.listen(1)
        self.qmp_listener = socket.socket(socket.AF_UNIX)
        self.qmp_listener.bind(f"\0raw-qmp-{uuid.uuid4().hex}")
        self.qmp_listener.listen(1)
        ours, theirs = socket.socketpair()
        fds |= {"agent": self.agent_listener.fileno(), "qmp": self.qmp_listener.fileno(), "console": theirs.fileno()}
        opened = {name: os.open(path, os.O_RDONLY) for name, path in files.items()}
        fds |= opened
        self.generation = uuid.uuid4()
        command = [part.format(**fds, generation=self.generation) for part in argv]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=tuple(fds.values())
        )
        for fd in opened.values():
            os.close(fd)
        theirs.close()
        self.console = ours
        agent = socket.socket(socket.AF_UNIX)
        agent.connect(self.agent_listener.getsockname())
        self.agent = Line(agent)

    def connect_qmp(self) -> socket.socket:
        qmp = socket.socket(socket.AF_UNIX)
        qmp.connect(self.qmp_listener.getsockname())
        return qmp

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for sock in (self.agent.sock, self.agent_listener, self.qmp_listener, self.console):
            sock.close()
