"""A guest that is silent while somebody waits for it is asked, and then given up; one that answers never is."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.unit.agent.peer import Peer
from vmfork.agent.client import AgentClient
from vmfork.wire.frame import Opcode

LIMIT_S = 0.1


@pytest.fixture
async def given_up(line: tuple[AgentClient, Peer]) -> asyncio.Event:
    given_up = asyncio.Event()
    line[0].watch_silence(LIMIT_S, given_up.set)
    return given_up


async def is_set_within(event: asyncio.Event, limit_s: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), limit_s)
    return event.is_set()


async def test_a_silent_guest_is_asked_for_a_sign_of_life_and_then_given_up(line, given_up) -> None:
    client, peer = line
    waiting = asyncio.ensure_future(client.stat("/x"))
    await peer.request(Opcode.STAT)
    await asyncio.wait_for(peer.request(Opcode.PING), 10 * LIMIT_S)
    assert not given_up.is_set()
    assert await is_set_within(given_up, 10 * LIMIT_S)
    waiting.cancel()


async def test_one_that_answers_may_take_as_long_as_it_likes(line, given_up) -> None:
    client, peer = line
    waiting = asyncio.ensure_future(client.stat("/x"))
    await peer.request(Opcode.STAT)
    for _ in range(4):
        stream, _ = await asyncio.wait_for(peer.request(Opcode.PING), 10 * LIMIT_S)
        await peer.reply(stream)
    assert not given_up.is_set()
    waiting.cancel()


async def test_a_guest_that_nobody_waits_for_is_left_alone(line, given_up) -> None:
    client, peer = line
    pinging = asyncio.ensure_future(client.ping())
    stream, _ = await peer.request(Opcode.PING)
    await peer.reply(stream)
    await pinging
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.frame(), 3 * LIMIT_S)
    assert not given_up.is_set()


async def test_silence_can_be_waited_for_again(line, given_up) -> None:
    client, peer = line
    waiting = asyncio.ensure_future(client.stat("/x"))
    await peer.request(Opcode.STAT)
    for _ in range(2):
        assert await is_set_within(given_up, 10 * LIMIT_S)
        given_up.clear()
        client.wait_on()
    waiting.cancel()
