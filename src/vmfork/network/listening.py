"""Who listens in a guest."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.agent.deadline import deadline
from vmfork.errors import GuestFileError

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient

# proc_pid_net(5): number, local address and port, remote ones, state; 0A is TCP_LISTEN. Those that listen come first.
_LISTENING = re.compile(rb"^ *\d+: ([0-9A-F]+):([0-9A-F]{4}) [0-9A-F:]+ 0A ", re.MULTILINE)
# Every address, or the loopback's: 32 bits a word, in the byte order of the guest, which is little-endian.
_REACHED = {
    b"00000000", b"0100007F",
    b"0" * 32, b"00000000000000000000000001000000", b"0000000000000000FFFF00000100007F",
}  # fmt: skip
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_MOST_READ = 256 * 1024
# The kernel tells nobody that somebody listens, so it is asked. A look costs two round trips, some 0.5 ms under TCG.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2


async def wait_listening(agent: AgentClient, port: int, *, timeout_s: float) -> None:
    """Somebody listens at `port` of the guest's loopback. Raises `DeadlineExceeded`."""
    pause_s = _FIRST_PAUSE_S
    async with deadline(f"waiting for somebody to listen at port {port} of the guest", timeout_s):
        while port not in await find_listening(agent):
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


async def find_listening(agent: AgentClient) -> set[int]:
    """The ports of the guest's loopback at which somebody listens now."""
    found: set[int] = set()
    for table in _TABLES:
        with suppress(GuestFileError):  # a kernel without IPv6 has no second one
            found |= parse_listening(await agent.read_file(table, length=_MOST_READ, timeout_s=None))
    return found


def parse_listening(table: bytes) -> set[int]:
    """The ports of the loopback at which somebody listens, in what `/proc/net/tcp` or `tcp6` says."""
    return {int(port, 16) for address, port in _LISTENING.findall(table) if address in _REACHED}
