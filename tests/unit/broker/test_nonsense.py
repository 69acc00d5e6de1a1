"""Frames made up at random, from clients and from the guest: the broker lives on, or says why it ends the machine."""

from __future__ import annotations

import asyncio
import os
import random
import struct
from contextlib import suppress

import pytest

from tests.children import wait_gone
from tests.unit.broker.conftest import LIMIT_S
from tests.unit.broker.test_clients import HELLO
from vmfork.wire.frame import BrokerOpcode, Kind, Opcode, encode_fields, encode_frame

FRAMES = 3000
# Those that would end the broker, as they should, are left out.
_ENDING = {BrokerOpcode.END, BrokerOpcode.RELEASE}
_OPCODES = [*Opcode, *(each for each in BrokerOpcode if each not in _ENDING), 99, 255]
# No absolute path among them but one below the test's own folder: the agent does what it is asked, on this host.
_WORDS = [b"", b"0", b"1", b"2", b"65536", b"9" * 30, b"-1", b"true", b"arguments", b"stdin,arguments", b"t" * 16]


def payload(chance: random.Random, kind: int, *words: bytes) -> bytes:
    """One that may make sense, or not."""
    if chance.random() < 0.1:
        return chance.randbytes(chance.randrange(20))
    channel = bytes([chance.choice([0, 1, 2, 3, 4, 255])])
    if kind == Kind.DATA:
        return channel + bytes(chance.choice([0, 1, 1000, 65536]))
    if kind == Kind.EOF:
        return channel
    if kind == Kind.CREDIT:
        return channel + struct.pack(">I", chance.choice([0, 1, 65536, 0xFFFFFFFF]))
    fields = encode_fields(*chance.choices([*_WORDS, *words], k=chance.randrange(7)))
    return (bytes([chance.choice(_OPCODES)]) if kind == Kind.REQUEST else b"") + fields


@pytest.mark.parametrize("seed", range(4))
async def test_clients_that_make_no_sense_end_nothing(start, seed) -> None:
    """Each gets its ERROR or goes; one that makes sense is served all the while, and after it."""
    brokered, chance, loop = await start(), random.Random(seed), asyncio.get_running_loop()
    good, below = await brokered.client(), os.fsencode(brokered.folder / "nothing")
    for _ in range(60):
        with brokered.connect() as sock:
            sent = HELLO
            for _ in range(FRAMES // 60):
                kind = chance.choice([Kind.REQUEST, Kind.REQUEST, Kind.DATA, Kind.EOF, Kind.CREDIT, Kind.EVENT])
                sent += encode_frame(kind, chance.randrange(6), payload(chance, kind, below))
            with suppress(ConnectionError):  # it may be let go before the last frame
                await asyncio.wait_for(loop.sock_sendall(sock, sent), LIMIT_S)
            await good.ping(timeout_s=LIMIT_S)
    assert not wait_gone(brokered.pidfd, limit_s=0)
    await good.aclose()


@pytest.mark.parametrize("seed", range(12))
async def test_a_guest_that_makes_no_sense_is_ended_with_a_reason(start, seed) -> None:
    brokered, chance, loop = await start(agent=False), random.Random(seed), asyncio.get_running_loop()
    with brokered.connect() as sock:
        background = encode_fields(b"1", b"", b"/", b"", b"1", b"sh")
        asked = HELLO + encode_frame(Kind.REQUEST, 2, bytes([BrokerOpcode.BACKGROUND]) + background)
        for stream in range(3, 9):
            asked += encode_frame(Kind.REQUEST, stream, bytes([Opcode.READ]) + encode_fields(b"/x", b"0", b""))
        await loop.sock_sendall(sock, asked)
        streams = [(await asyncio.wait_for(brokered.peer.frame(), LIMIT_S)).stream for _ in range(7)]
        for _ in range(FRAMES):
            kind = chance.choice([Kind.REPLY, Kind.ERROR, Kind.DATA, Kind.DATA, Kind.EOF, Kind.CREDIT, Kind.EVENT])
            frame = encode_frame(kind, chance.choice([0, 77, *streams]), payload(chance, kind))
            try:
                await asyncio.wait_for(loop.sock_sendall(brokered.peer.sock, frame), LIMIT_S)
            except ConnectionError:
                break
    assert brokered.why_ended().startswith("its guest sent ")
    assert os.path.exists(brokered.folder / "console.log")
