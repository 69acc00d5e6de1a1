"""Bytes of an agent that nobody trusts, to the host's parser and client.

Every kind of request is open, each on the stream that `STREAMS` gives it; or a greeting, alone, where an input begins
with `GREETED`. Any other first byte says in pieces of how many bytes the rest comes. Whatever comes, each request ends
in a value or an error of ours, and the owner holds no more than the credit that it gave. What is copied out of the
guest comes into one folder of the host's, and nothing into another.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

from vmfork.agent.client import AgentClient
from vmfork.agent.process import GuestProcess
from vmfork.agent.tunnel import GuestConnection
from vmfork.errors import ProtocolError, VMForkError
from vmfork.host.packing import Packing
from vmfork.host.unpacking import Place, Unpacking
from vmfork.wire.command import Command
from vmfork.wire.frame import FIRST_CREDIT, PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vmfork.agent.exchange import Exchange

KINDS = (
    *("ping", "exec", "start", "read", "list", "write", "stat", "adopt", "clock", "quiesce", "notify", "kill", "tree"),
    *("connect", "get", "put", "listen", "card"),
)
STREAMS = {kind: number for number, kind in enumerate(KINDS, start=1)}
GREETED = 0xFF
NONCE = b"0123456789abcdef"

_LIMIT_S = 60.0
_MOST_OUTPUT = 1000
_MOST_HELD = FIRST_CREDIT + 1024 * 1024


def _ask(client: AgentClient, kind: str, folder: Path) -> Coroutine:
    match kind:
        case "get":
            place = Place(path=str(folder / "into"), name="x", operation="copying", max_bytes=_MOST_OUTPUT)
            return client.get("/x", Unpacking(place))
        case "put":
            return client.put(Packing(str(folder / "from")), "/x")
        case "exec":
            return client.exec(Command(["x"]), input=b"in", max_output=_MOST_OUTPUT)
        case "start":
            return client.start_exec(Command(["x"], stdin=True), timeout_s=None)
        case "read":
            return client.read_file("/x", max_bytes=_MOST_OUTPUT, timeout_s=None)
        case "list":
            return client.list_dir("/x", timeout_s=None)
        case "tree":
            return client.list_tree("/x", timeout_s=None)
        case "write":
            return client.write_file("/x", b"w" * 100, timeout_s=None)
        case "stat":
            return client.stat("/x", timeout_s=None)
        case "adopt":
            return client.adopt([("fork-id", b"f")], timeout_s=None)
        case "card":
            return client.set_card("020000000001", "10.0.2.16", "24", "10.0.2.2", timeout_s=None)
        case "disk":
            return client.mount_disk(timeout_s=None)
        case "clock":
            return client.clock(timeout_s=None)
        case "quiesce":
            return client.quiesce(timeout_s=None)
        case "notify":
            return client.notify(1.0, timeout_s=None)
        case "connect":
            return client.open_tunnel(80, timeout_s=None)
        case "listen":
            return client.listen(80, timeout_s=None)
        case "kill":
            return client.kill(STREAMS["start"], 15, timeout_s=None)
        case "greet":
            return client.hello(take_over=False, timeout_s=None)
        case _:
            return client.ping(timeout_s=None)


async def _open(client: AgentClient, kinds: tuple[str, ...], folder: Path) -> list[asyncio.Task]:
    with patch("os.urandom", lambda _size: NONCE):
        tasks = [asyncio.ensure_future(_ask(client, kind, folder)) for kind in kinds]
        while len(client._open) < len(kinds):
            assert not any(task.done() for task in tasks), tasks
            await asyncio.sleep(0)
    return tasks


def _check(client: AgentClient) -> None:
    """The line ended by nothing but what the protocol names, and what is held is bounded."""
    if isinstance(client.lost, ProtocolError) and client.lost.__cause__ is not None:
        # The net below the parser caught an error that nobody foresaw.
        raise client.lost.__cause__
    for exchange in client._open.values():
        assert _held_by(exchange) <= _MOST_HELD, exchange


def _held_by(exchange: Exchange) -> int:
    waiting = getattr(exchange, "waiting", ())
    assert all(data for _, data in waiting), "what has no bytes costs no credit"
    kept = getattr(exchange, "_kept", b"")
    kept = kept or getattr(exchange, "_waiting", b"")
    return sum(len(data) for _, data in waiting) + sum(map(len, kept.values() if isinstance(kept, dict) else [kept]))


async def take(data: bytes) -> None:
    """The bytes came, and then the line ended. Raises what nobody foresaw."""
    with tempfile.TemporaryDirectory(prefix="vmfork-fuzz-") as name:
        folder = Path(name)
        (folder / "into").mkdir()
        (folder / "from").write_bytes(b"w" * 100)
        await _take(data, folder)
        assert {path.name for path in folder.iterdir()} == {"into", "from"}


async def _take(data: bytes, folder: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with await AgentClient.open(ours, protocol=PROTOCOL) as client:
            is_greeted = data[:1] == bytes((GREETED,))
            tasks = await _open(client, ("greet",) if is_greeted else KINDS, folder)
            piece = data[0] if data[:1] and not is_greeted else 0
            piece = piece or max(1, len(data))
            for at in range(1, len(data), piece):
                if client.lost is None:
                    client._line._take(data[at : at + piece])
                    _check(client)
                await asyncio.sleep(0)
        async with asyncio.timeout(_LIMIT_S):
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(_follow(each) for each in outcomes if isinstance(each, GuestProcess)))
            await asyncio.gather(*(_read(each) for each in outcomes if isinstance(each, GuestConnection)))
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, VMForkError):
            raise outcome


async def _read(connection: GuestConnection) -> None:
    try:
        while await connection.read():
            pass
    except VMForkError:
        return


async def _follow(process: GuestProcess) -> None:
    try:
        async for _ in process.output():
            pass
    except VMForkError:
        return
