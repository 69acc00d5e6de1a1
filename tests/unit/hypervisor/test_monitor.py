"""The greeting of QEMU's monitor, where QEMU tells an event in the middle of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from vmfork.errors import HostError
from vmfork.host.sockets import connect_unix
from vmfork.hypervisor.qemu.monitor import Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}
EVENT = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": "JOB_STATUS_CHANGE", "data": {"status": "null"}}


@asynccontextmanager
async def greeting(path, *, interrupted: int):
    """Who serves there as QEMU does: as often as `interrupted` says, an event comes before the first answer.

    Gives the list of clients that it greeted.
    """
    greeted = []

    async def serve(reader, writer) -> None:
        def say(message: dict) -> None:
            writer.write(json.dumps(message).encode() + b"\r\n")

        greeted.append(writer)
        say(GREETING)
        # The package ends what it asks with nothing, and waits for the answer before it asks again.
        while text := await reader.read(4096):
            asked = json.loads(text)
            if asked["execute"] == "qmp_capabilities" and len(greeted) <= interrupted:
                say(EVENT)
            say({"return": {"status": "running"}, "id": asked["id"]} if "id" in asked else {"return": {}})
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield greeted
    finally:
        server.close()
        for writer in greeted:
            writer.close()


@pytest.mark.parametrize("interrupted", [0, 1, 3])
async def test_it_is_opened_whatever_qemu_tells_before_it_answers(tmp_path, interrupted) -> None:
    path = tmp_path / "qmp"
    async with greeting(path, interrupted=interrupted) as greeted:
        monitor = await Monitor.open(lambda: connect_unix(path))
        try:
            assert await monitor.execute("query-status") == {"status": "running"}
            assert len(greeted) == interrupted + 1
        finally:
            await monitor.aclose()


async def test_who_never_lets_it_is_told(tmp_path) -> None:
    path = tmp_path / "qmp"
    async with greeting(path, interrupted=1000):
        with pytest.raises(HostError, match="Negotiation failed"):
            await Monitor.open(lambda: connect_unix(path))


async def test_who_hangs_up_is_not_asked_again(tmp_path) -> None:
    calls = []

    async def serve(_reader, writer) -> None:
        calls.append(writer)
        writer.close()

    path = tmp_path / "qmp"
    server = await asyncio.start_unix_server(serve, path)
    try:
        with pytest.raises(HostError, match="did not answer"):
            await Monitor.open(lambda: connect_unix(path))
        assert len(calls) == 1
    finally:
        server.close()
