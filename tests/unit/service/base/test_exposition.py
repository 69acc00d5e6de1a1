"""Metrics are read on the loopback, where every user of the host may connect."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from vmfork.config.endpoint import parse_metrics_address
from vmfork.service.base.exposition import READER_LIMIT, Exposition


async def render() -> tuple[str, bytes]:
    return "text/plain", b"taken 1\n"


@pytest.fixture
async def exposition():
    async with asyncio.timeout(30):
        made = Exposition(parse_metrics_address("127.0.0.1:0"), render)
        await made.open()
        yield made
        await made.aclose()


def connect(exposition):
    host, _, port = exposition.address.rpartition(":")
    return asyncio.open_connection(host, int(port))


async def test_idle_readers_keep_nobody_out(exposition) -> None:
    idle = [await connect(exposition) for _ in range(3 * READER_LIMIT)]
    reader, writer = await connect(exposition)
    writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"taken 1\n")
    for waiting, _ in idle[: 2 * READER_LIMIT]:  # those that came first were cut off
        assert await waiting.read() == b""
    for _, each in [*idle, (reader, writer)]:
        each.close()
        with suppress(ConnectionResetError):
            await each.wait_closed()


async def test_closing_ends_readers_that_wait(exposition) -> None:
    reader, writer = await connect(exposition)
    await asyncio.sleep(0)
    await exposition.aclose()
    with suppress(ConnectionResetError):  # it was not accepted yet
        assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    with suppress(ConnectionResetError):
        await writer.wait_closed()


async def test_metrics_that_cannot_be_read_are_an_answer_and_the_next_reader_is_served(tmp_path) -> None:
    failures = [OSError("no descriptors"), ValueError("a damaged record")]

    async def render_in_the_end() -> tuple[str, bytes]:
        if failures:
            raise failures.pop()
        return await render()

    exposition = Exposition(parse_metrics_address(f"unix:{tmp_path}/m"), render_in_the_end)
    await exposition.open()
    for status in (b"500", b"500", b"200"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "m")
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert (await reader.read()).split()[1] == status
        writer.close()
        await writer.wait_closed()
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600
    await exposition.aclose()
