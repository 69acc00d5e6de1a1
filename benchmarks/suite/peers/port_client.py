"""Who calls a port, in a process of its own: python port_client.py bytes|out|in HOST PORT SIZE. Prints seconds.

A caller that were a thread of the process which forwards would take turns with it, and so do callers of nobody.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time

_ECHOES = 50
_CONNECTS = 5
# The same programs give and take, whether at a port or under the agent. Each says when it is ready: what it costs to
# start one is no part of what is measured.
GIVE = "printf r; head -c {size} /dev/zero"
TAKE = "printf r; cat >/dev/null; printf k"


def time_bytes(address: tuple[str, int]) -> tuple[float, float]:
    """Seconds from the connect to the first byte that came back; and of one byte there and back."""
    begun = time.perf_counter()
    with socket.create_connection(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"e")
        client.recv(1)
        first, echoes = time.perf_counter() - begun, []
        for _ in range(_ECHOES):
            sent = time.perf_counter()
            client.sendall(b"x")
            client.recv(1)
            echoes.append(time.perf_counter() - sent)
    return first, statistics.median(echoes)


def time_both(address: tuple[str, int]) -> tuple[float, float]:
    """The medians of some connections; the first, which pays for what is emulated anew, does not count."""
    found = [time_bytes(address) for _ in range(_CONNECTS + 1)][1:]
    first, echo = (statistics.median(each) for each in zip(*found, strict=True))
    return first, echo


def _ask_for(client: socket.socket, script: str) -> float:
    """When the script was ready."""
    client.sendall(b"s" + script.encode().ljust(80))
    assert client.recv(1) == b"r"
    return time.perf_counter()


def time_out(address: tuple[str, int], size: int) -> float:
    with socket.create_connection(address) as client:
        begun = _ask_for(client, GIVE.format(size=size))
        while size:
            size -= len(client.recv(min(size, 65536)))
        return time.perf_counter() - begun


def time_in(address: tuple[str, int], size: int) -> float:
    content = bytes(size)
    with socket.create_connection(address) as client:
        begun = _ask_for(client, TAKE)
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"k"
        return time.perf_counter() - begun


if __name__ == "__main__":
    what, host, port, size = sys.argv[1:]
    where = (host, int(port))
    if what == "bytes":
        sys.stdout.write("{} {}\n".format(*time_both(where)))
    else:
        sys.stdout.write(f"{time_out(where, int(size)) if what == 'out' else time_in(where, int(size))}\n")
