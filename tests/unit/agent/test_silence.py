"""A guest that is silent while somebody waits for it is asked, and then given up; one that answers never is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.timing import HeldTime, held_time
from tests.unit.agent.peer import Peer
from vmfork.agent.client import AgentClient
from vmfork.wire.frame import Opcode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT_S = 0.1


@pytest.fixture
async def time() -> AsyncIterator[HeldTime]:
    with held_time() as time:
        yield time


@pytest.fixture
async def given_up(line: tuple[AgentClient, Peer], time: HeldTime) -> asyncio.Event:
    given_up = asyncio.Event()
    line[0].watch_silence(LIMIT_S, given_up.set)
    return given_up


async def test_a_silent_guest_is_asked_for_a_sign_of_life_and_then_given_up(line, time, given_up) -> None:
    client, peer = line
    waiting = asyncio.ensure_future(client.stat("/x"))
    await peer.request(Opcode.STAT)
    time.pass_by(1.1 * LIMIT_S)
    await peer.request(Opcode.PING)
    assert not given_up.is_set()
    time.pass_by(1.1 * LIMIT_S)
    await given_up.wait()
    waiting.cancel()


async def test_one_that_answers_may_take_as_long_as_it_likes(line, time, given_up) -> None:
    client, peer = line
    waiting = asyncio.ensure_future(client.stat("/x"))
    await peer.request(Opcode.STAT)
    for _ in range(4):
        time.pass_by(1.1 * LIMIT_S)
        stream, _ = await peer.request(Opcode.PING)
        await peer.reply(stream)
        while client._silence._asked:  # until it is heard
            await asyncio.sleep(0)
    assert not given_up.is_set()
    waiting.cancel()


async def test_a_guest_that_nobody_waits_for_is_left_alone(line, time, given_up) -> None:
    client, peer = line
    pinging = asyncio.ensure_future(client.ping())
    stream, _ = await peer.request(Opcode.PING)
    await peer.reply(stream)
    await pinging
    for _ in range(3):
        time.pass_by(1.1 * LIMIT_S)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        peer.sock.recv(1)
    assert not given_up.is_set()


async def test_silence_can_be_waited_for_again(line, time, given_up) -> None:
    client, peer = line
    waiting = asyncio.ensure_future(client.stat("/x"))
    await peer.request(Opcode.STAT)
    for _ in range(2):
        time.pass_by(1.1 * LIMIT_S)
        await peer.request(Opcode.PING)
        time.pass_by(1.1 * LIMIT_S)
        await given_up.wait()
        given_up.clear()
        client.wait_on()
    waiting.cancel()
