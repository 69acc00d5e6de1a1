"""How a test host fares: what its job says is passed on, and that its kernel runs is seen by a byte a second."""

from __future__ import annotations

import os
import select
import sys
import time
from collections import deque
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

# Between two bytes (`inside/host`): some seconds on a host that has far more to do than it can.
SILENT_S = 120.0
_LOOK_S = 5.0
# A key is what QEMU's monitor can press: a kernel that runs tells what waits in it, and what each CPU does.
_QUESTIONS = ("sendkey alt-sysrq-w", "sendkey alt-sysrq-l", "info registers")
_ANSWER_S = 3.0
_KEPT_LINES = 20


class HostFailed(Exception):
    """The test host sent no exit status of its job. The text tells why, with what was said last."""


class HostDied(HostFailed):
    """Its kernel is dead, or stands still. No test brings that about: it is a fault of the kernel or its emulation."""


class Watch:
    """Of one machine. `last` are the last lines of its job."""

    def __init__(self) -> None:
        self.last: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._line = b""

    def follow(self, output: IO[bytes], alive: IO[bytes], *, limit_s: float, silent_s: float = SILENT_S) -> None:
        """What comes from `output` is on our standard output, until it ends.

        `HostDied` where `alive`, a file, has not grown for `silent_s`, and `HostFailed` after `limit_s`.
        """
        begun = heard = time.monotonic()
        size = 0
        while True:
            if select.select([output], [], [], min(_LOOK_S, limit_s))[0]:
                data = os.read(output.fileno(), 1 << 16)
                if not data:
                    return
                self._pass_on(data)
            now = time.monotonic()
            if (grown := os.fstat(alive.fileno()).st_size) != size:
                size, heard = grown, now
            if now - heard > silent_s:
                raise HostDied(f"its kernel stood still for {silent_s:.0f} s, and it was ended")
            if now - begun > limit_s:
                raise HostFailed(f"it was ended after {limit_s:.0f} s")

    def _pass_on(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        *lines, self._line = (self._line + data).split(b"\n")
        self.last.extend(lines)

    def read_last(self) -> list[str]:
        """The end of what the job said, with a line that has not ended."""
        return [line.decode(errors="replace") for line in (*self.last, self._line) if line]


def ask(monitor: socket.socket) -> Sequence[str]:
    """What QEMU tells of its CPUs. What the kernel tells, if it runs, is on its console."""
    told = b""
    monitor.sendall("".join(f"{question}\n" for question in _QUESTIONS).encode())
    end = time.monotonic() + _ANSWER_S
    while select.select([monitor], [], [], max(0.0, end - time.monotonic()))[0]:
        data = monitor.recv(1 << 16)
        if not data:
            break
        told += data
    return told.decode(errors="replace").splitlines()
