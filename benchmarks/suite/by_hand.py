"""The raw baseline many times over; and QEMU's monitor, spoken to by hand, which a peer needs."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmfork.bench.raw import Fork, start, time_one

if TYPE_CHECKING:
    import socket

    from vmfork.bench.raw import Source


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
