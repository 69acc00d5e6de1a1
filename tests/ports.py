"""Ports of this host that stay free until a test uses them."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_CHANCE = random.SystemRandom()
_LEAST = 10_000


def free_port() -> int:
    """One at which nobody listens.

    It is none of those that the kernel gives who listens at port 0, or calls: one of these, chosen and closed, was
    another's before it was used.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    first, last = int(given[0]), int(given[1])
    choice = [*range(_LEAST, first), *range(last + 1, 65_536)] or range(_LEAST, 65_536)
    while True:
        port = _CHANCE.choice(choice)
        with socket.socket() as unused:
            try:
                unused.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
