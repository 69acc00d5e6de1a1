"""Whatever bytes the host sends, the agent neither crashes nor hangs, and answers after the next HELLO."""

from __future__ import annotations

import os
import random
import select
import time
from typing import TYPE_CHECKING

import pytest

from vmfork.wire.frame import (
    TAKE_OVER_PREAMBLE,
    Channel,
    FrameParser,
    Kind,
    Opcode,
    encode_credit,
    encode_data,
    encode_eof,
    encode_request,
)
from vmfork.wire.message import hello_request

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

# A violation ends what the agent listens to until the next HELLO, so the rounds are short and many.
ROUNDS = 250
FRAMES_A_ROUND = 12
BROKEN_SHARE = 0.04
MOMENT_S = 0.003
HEADER = 9
TELLING_NUMBERS = (0, 1, 7, 0x7FFF_FFFF, 0xFFFF_FFFF, 262_144)
ANSWER_LIMIT_S = 10.0
NOBODY = 65534

# A mutated request is obeyed too. So no path here is one of the host's, nor becomes one when cut short, changed in a
# few bytes or given to another request; and as root the agent runs as nobody.
PATH = b"/vmfork-fuzz-none/x"
# Cut short or changed, still below a folder of the kernel's where nothing can be made: /proc refuses, /dev/null is one.
SCRATCH = b"/dev/null/x"
SEEDS = [
    encode_request(1, Opcode.HELLO, b"n" * 16, b"1"),
    encode_request(2, Opcode.PING),
    encode_request(3, Opcode.EXEC, b"stdin", b"", b"", b"1", b"true", b"A=1"),
    encode_request(4, Opcode.EXEC, b"stdin,clean-env", b"/", b"", b"2", b"cat", b"-"),
    encode_request(18, Opcode.EXEC, b"", b"/nowhere", b"nobody", b"1", b"cat"),
    encode_request(5, Opcode.KILL, b"3", b"9"),
    encode_request(6, Opcode.READ, PATH, b"0", b"10"),
    encode_request(7, Opcode.WRITE, SCRATCH, b"644", b"exclusive"),
    encode_request(8, Opcode.STAT, PATH),
    encode_request(9, Opcode.LIST, b"/proc/self/fd"),
    encode_request(19, Opcode.READ, b"/proc/self/maps", b"0", b""),
    encode_request(10, Opcode.REMOVE, PATH, b""),
    encode_request(11, Opcode.MKDIR, PATH, b"755", b""),
    encode_request(12, Opcode.ADOPT, b"fork-id", b"f", b"env", b"A=1", b"generation", b"0" * 32),
    encode_request(13, Opcode.ADOPT, b"machine-id", b"0" * 32, b"entropy", b"e" * 64, b"boot-id", b"b" * 36),
    encode_request(14, Opcode.CLOCK, b"1000000000000000000"),
    encode_request(15, Opcode.CLOCK, b""),
    encode_request(25, Opcode.NET, b"020000000001", b"10.0.2.16", b"24", b"10.0.2.2"),
    encode_request(26, Opcode.DISK),
    encode_request(16, Opcode.QUIESCE),
    encode_request(17, Opcode.GROWN),
    encode_request(22, Opcode.EXEC, b"arguments,contained", b"", b"", b"1"),
    encode_data(22, Channel.ARGUMENTS, b"\0\0\0\4true"),
    encode_eof(22, Channel.ARGUMENTS),
    encode_request(23, Opcode.WRITE, SCRATCH, b"", b"", b"1000000"),
    encode_request(24, Opcode.REMOVE, PATH, b"recursive"),
    encode_request(20, Opcode.NOTIFY, b"1"),
    encode_request(21, Opcode.NOTIFY, b"3600000"),
    encode_data(3, Channel.CONTENT, b"input"),
    encode_data(4, Channel.CONTENT, b"x" * 40_000),
    encode_eof(3, Channel.CONTENT),
    encode_credit(3, Channel.STDOUT, 0xFFFF_FFFF),
    encode_credit(9, Channel.CONTENT, 1),
    encode_data(7, Channel.CONTENT, b"content"),
    encode_eof(7, Channel.CONTENT),
    b"\xff" * 20,
]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, taken out, put in or cut off; now and then as it was."""
    mutated = bytearray(data)
    for _ in range(chance.choice((0, 0, 0, 1, 1, 2, 5))):
        at = chance.randrange(len(mutated) + 1)
        match chance.randrange(5):
            case 0:
                mutated[at : at + 1] = bytes((chance.randrange(256),))
            case 1:
                del mutated[at : at + chance.randrange(1, 5)]
            case 2:
                mutated[at:at] = chance.randbytes(chance.randrange(1, 5))
            case 3:
                mutated[at : at + 4] = chance.choice(TELLING_NUMBERS).to_bytes(4)
            case _:
                del mutated[at:]
    return bytes(mutated)


def mutate_frame(frame: bytes, chance: random.Random) -> bytes:
    """Mostly the payload in a sound frame, so that what comes behind it is still understood; else the whole frame."""
    if chance.random() < BROKEN_SHARE:
        return mutate(frame, chance)
    payload = mutate(frame[HEADER:], chance)
    # SHUTDOWN ends the agent, which is right and tells nothing.
    if frame[4] == Kind.REQUEST and payload[:1] == bytes((Opcode.SHUTDOWN,)):
        payload = frame[HEADER:]
    return len(payload).to_bytes(4) + frame[4:HEADER] + payload


def garbage(chance: random.Random) -> bytes:
    return b"".join(mutate_frame(chance.choice(SEEDS), chance) for _ in range(FRAMES_A_ROUND))


def answers(sock: socket.socket, data: bytes, nonce: bytes) -> list[tuple[Kind, int]]:
    """Sends and reads at once, as a client that neither may hold up, until two answers came behind the nonce."""
    sock.setblocking(False)
    rest, got = memoryview(data), b""
    end = time.monotonic() + ANSWER_LIMIT_S
    while time.monotonic() < end:
        readable, writable, _ = select.select([sock], [sock] if rest else [], [], ANSWER_LIMIT_S)
        if writable:
            rest = rest[sock.send(rest[:65536]) :]
        if readable:
            piece = sock.recv(65536)
            assert piece, "the agent ended"
            got = got[-15:] + piece if nonce not in got else got + piece
        if nonce in got:
            frames = FrameParser().feed(got.split(nonce, 1)[1])
            if len(frames) >= 2:
                return [(frame.kind, frame.stream) for frame in frames]
    pytest.fail(f"no answer to HELLO within {ANSWER_LIMIT_S} s")


@pytest.mark.parametrize("seed", range(4))
def test_mutated_frames_neither_crash_nor_hang_the_agent(start_agent: Callable, tmp_path: Path, seed: int) -> None:
    running = start_agent("--root", str(tmp_path), user=NOBODY if os.geteuid() == 0 else None)
    chance = random.Random(seed)
    for _ in range(ROUNDS):
        nonce = chance.randbytes(16)
        running.sock.setblocking(True)
        running.sock.sendall(garbage(chance))
        # What was started may run for a moment before HELLO ends it.
        select.select([], [], [], MOMENT_S)
        greeting = TAKE_OVER_PREAMBLE + hello_request(1, nonce) + encode_request(2, Opcode.PING)
        assert answers(running.sock, greeting, nonce) == [(Kind.REPLY, 1), (Kind.REPLY, 2)]


def test_random_bytes_neither_crash_nor_hang_the_agent(start_agent: Callable) -> None:
    running = start_agent(user=NOBODY if os.geteuid() == 0 else None)
    chance = random.Random(0)
    for _ in range(20):
        nonce = chance.randbytes(16)
        greeting = TAKE_OVER_PREAMBLE + hello_request(1, nonce) + encode_request(2, Opcode.PING)
        assert answers(running.sock, chance.randbytes(20_000) + greeting, nonce)[0] == (Kind.REPLY, 1)
