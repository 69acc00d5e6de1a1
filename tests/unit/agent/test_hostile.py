"""An agent that keeps to nothing: it may end its own machine's calls, and neither fill the owner nor starve others."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.unit.agent.peer import Peer
from vmfork.agent.client import AgentClient
from vmfork.agent.line import FRAMES_A_TURN, MOST_UNSENT
from vmfork.errors import GuestError, LimitExceeded, ProtocolError
from vmfork.host.packing import Packing
from vmfork.host.unpacking import Place, Unpacking
from vmfork.network.address import HostAddress
from vmfork.network.reverse import start_reverse
from vmfork.wire.command import Command
from vmfork.wire.frame import (
    FIRST_CREDIT,
    IDLE,
    MOST_CREDIT,
    MOST_TUNNELS,
    PAYLOAD_LIMIT,
    PROTOCOL,
    Channel,
    Kind,
    Opcode,
    encode_credit,
    encode_data,
    encode_fields,
    encode_frame,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

STARTED = encode_fields(b"started", b"77")
WIDENED = 1024 * 1024  # what a transfer of a file is given beforehand


async def ask(peer: Peer, call: Coroutine, opcode: Opcode) -> tuple[asyncio.Task, int]:
    """The call, open, and the stream it is open on."""
    task = asyncio.ensure_future(call)
    while (frame := await peer.frame()).kind is not Kind.REQUEST:
        pass
    assert frame.payload[0] == opcode
    return task, frame.stream


async def send_until_lost(client: AgentClient, peer: Peer, data: bytes, *, most: int) -> int:
    """How many times `data` was sent before the line was lost; `most` where it never was."""
    for count in range(most):
        if client.lost is not None:
            return count
        with suppress(OSError):
            await peer.send(data)
        await asyncio.sleep(0)
    return most


@pytest.mark.parametrize("size", [FIRST_CREDIT + 1, PAYLOAD_LIMIT - 1])
async def test_output_beyond_the_credit_ends_a_collected_program(line, size: int) -> None:
    """Credit is given back as it comes: only a piece too large at once can be told from a good one."""
    client, peer = line
    running, stream = await ask(peer, client.exec(Command(["x"])), Opcode.EXEC)
    await peer.send(encode_data(stream, Channel.STDERR, b"e" * size))
    with pytest.raises(ProtocolError, match=f"{size} bytes wait on channel 2, where 65536 may"):
        await running
    assert isinstance(client.lost, ProtocolError)


async def test_a_file_beyond_the_credit_ends_the_line(line) -> None:
    """What the host has not given back yet counts: 16 KiB less one, and then all that may be on the way."""
    client, peer = line
    reading, stream = await ask(peer, client.read_file("/x"), Opcode.READ)
    await peer.send(encode_data(stream, Channel.CONTENT, b"a" * 16_383))
    left = FIRST_CREDIT + WIDENED - 16_383
    whole, rest = divmod(left, PAYLOAD_LIMIT - 1)
    pieces = [PAYLOAD_LIMIT - 1] * whole + [rest]
    await peer.send(b"".join(encode_data(stream, Channel.CONTENT, b"b" * size) for size in pieces))
    await peer.reply(stream, b"%d" % (FIRST_CREDIT + WIDENED), b"644")
    assert len(await reading) == FIRST_CREDIT + WIDENED


@pytest.mark.parametrize("channel", [Channel.STDOUT, Channel.ARGUMENTS])
async def test_a_file_on_a_channel_of_its_own_choice_ends_the_line(line, channel: Channel) -> None:
    client, peer = line
    reading, stream = await ask(peer, client.read_file("/x"), Opcode.READ)
    await peer.send(encode_data(stream, channel, b"a"))
    with pytest.raises(ProtocolError, match="which has none"):
        await reading


async def test_what_nobody_takes_is_held_as_far_as_the_credit_and_no_further(line) -> None:
    client, peer = line
    starting, stream = await ask(peer, client.start_exec(Command(["x"])), Opcode.EXEC)
    await peer.send(encode_frame(Kind.EVENT, stream, STARTED))
    process = await starting
    sent = await send_until_lost(client, peer, encode_data(stream, Channel.STDOUT, b"o" * 4096), most=1000)
    assert sent < 1000
    with pytest.raises(ProtocolError, match="where 65536 may"):
        await process.wait(timeout_s=30)
    assert sum(len(data) for _, data in process._exchange.waiting) == FIRST_CREDIT


async def test_a_program_that_ended_before_it_was_started_ends_the_line(line) -> None:
    """Its start was awaited until the limit of time, or for ever."""
    client, peer = line
    starting, stream = await ask(peer, client.start_exec(Command(["x"]), timeout_s=None), Opcode.EXEC)
    await peer.reply(stream, b"exit", b"0", b"5")
    with pytest.raises(ProtocolError, match="never started"):
        await asyncio.wait_for(starting, 30)


async def test_data_without_bytes_costs_no_credit_and_is_not_held(line) -> None:
    client, peer = line
    starting, stream = await ask(peer, client.start_exec(Command(["x"])), Opcode.EXEC)
    await peer.send(encode_frame(Kind.EVENT, stream, STARTED))
    process = await starting
    await peer.send(encode_data(stream, Channel.STDOUT, b"") * 1000 + encode_data(stream, Channel.STDOUT, b"x"))
    output = process.output()
    assert await anext(output) == (Channel.STDOUT, b"x")
    assert not process._exchange.waiting
    await client.aclose()


async def test_an_agent_that_would_take_everything_at_once_ends_the_line(line) -> None:
    """It reads nothing; what it was to be sent would wait in the owner instead."""
    client, peer = line
    starting, stream = await ask(peer, client.start_exec(Command(["cat"], stdin=True)), Opcode.EXEC)
    await peer.send(encode_frame(Kind.EVENT, stream, STARTED))
    process = await starting
    await peer.send(encode_credit(stream, Channel.CONTENT, MOST_CREDIT))
    with pytest.raises(ProtocolError, match="bytes ahead"):
        await process.wait(timeout_s=30)


async def test_input_for_an_agent_that_gives_credit_and_reads_nothing_waits_outside(line) -> None:
    client, peer = line
    starting, stream = await ask(peer, client.start_exec(Command(["cat"], stdin=True)), Opcode.EXEC)
    await peer.send(encode_frame(Kind.EVENT, stream, STARTED))
    process = await starting

    async def give_what_is_missing() -> None:
        if process._exchange.credit < FIRST_CREDIT:
            await peer.send(encode_credit(stream, Channel.CONTENT, FIRST_CREDIT))

    writing = asyncio.ensure_future(process.write_stdin(b"i" * (16 * MOST_UNSENT)))
    for _ in range(300):
        await give_what_is_missing()
        await asyncio.sleep(0)
        assert len(client._line._unsent) < MOST_UNSENT + 2 * FIRST_CREDIT
    assert not writing.done()
    taken = 0
    while taken < 16 * MOST_UNSENT:
        taken += len((await peer.frame()).payload) - 1
        await give_what_is_missing()
    await writing
    await client.aclose()  # ends the process, which nobody closed


async def test_input_that_waits_ends_with_the_line(line) -> None:
    client, peer = line
    starting, stream = await ask(peer, client.start_exec(Command(["cat"], stdin=True)), Opcode.EXEC)
    await peer.send(encode_frame(Kind.EVENT, stream, STARTED))
    process = await starting
    client.send(IDLE * (4 * MOST_UNSENT))
    writing = asyncio.ensure_future(process.write_stdin(b"i"))
    await asyncio.sleep(0)
    peer.sock.close()
    with pytest.raises(GuestError, match="agent is gone"):
        await writing


async def test_a_file_that_the_agent_would_take_at_once_ends_the_line(line) -> None:
    client, peer = line
    writing, stream = await ask(peer, client.write_file("/x", b"x" * (4 * MOST_CREDIT)), Opcode.WRITE)
    await peer.send(encode_credit(stream, Channel.CONTENT, 0xFFFF_FFFF))
    with pytest.raises(ProtocolError, match="bytes ahead"):
        await writing
    assert not client._line._unsent


async def test_credit_for_an_agent_that_reads_nothing_is_added_up(line) -> None:
    client, peer = line
    running, stream = await ask(peer, client.exec(Command(["x"])), Opcode.EXEC)
    client.send(b"\xff" * 2_000_000)  # the line is full
    queued = len(client._line._unsent)
    assert queued
    for _ in range(200):
        await peer.send(encode_data(stream, Channel.STDOUT, b"o" * 16_384))
    while len(running_output(client)) < 200 * 16_384:
        await asyncio.sleep(0)
    assert len(client._line._unsent) == queued
    frame = await peer.frame()  # behind the idle bytes
    assert (frame.kind, frame.payload) == (Kind.CREDIT, encode_credit(stream, Channel.STDOUT, 200 * 16_384)[9:])
    await peer.reply(stream, b"exit", b"0", b"5")
    await running


def running_output(client: AgentClient) -> bytes:
    (run,) = client._open.values()
    return run.stdout


ANSWERS = {
    "stat": lambda client: client.stat("/x"),
    "read": lambda client: client.read_file("/x"),
    "list": lambda client: client.list_dir("/x"),
    "list-tree": lambda client: client.list_tree("/x"),
    "put": lambda client: client.put(Packing(__file__), "/x"),
    "get": lambda client: client.get(
        "/x", Unpacking(Place(path="/dev/shm/vmfork-none", name="x", operation="copying"))
    ),
    "card": lambda client: client.set_card("020000000001"),
    "disk": lambda client: client.mount_disk(),
    "clock": lambda client: client.clock(),
    "adopt": lambda client: client.adopt([("fork-id", b"f")]),
    "quiesce": lambda client: client.quiesce(),
    "grown": lambda client: client.grown(),
    "notify": lambda client: client.notify(1.0),
    "exec": lambda client: client.exec(Command(["x"])),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("answer", [b"nonsense", encode_fields(b"x"), encode_fields(b"x", b"ok", b"y", b"z")])
async def test_an_answer_that_makes_no_sense_ends_all_calls_of_the_machine(line, name: str, answer: bytes) -> None:
    client, peer = line
    pending = asyncio.ensure_future(client.ping(timeout_s=None))
    await peer.request(Opcode.PING)
    asked = asyncio.ensure_future(ANSWERS[name](client))
    stream = (await peer.frame()).stream
    await peer.send(encode_frame(Kind.REPLY, stream, answer))
    for call in (asked, pending):
        with pytest.raises(ProtocolError):
            await asyncio.wait_for(call, 30)
    assert isinstance(client.lost, ProtocolError)


@pytest.mark.parametrize("fields", [(), (b"protocol", b"ok", b"three"), (b"protocol", b"ok", b"9" * 400)])
async def test_an_agent_that_tells_no_protocol_ends_the_line(fields) -> None:
    ours, theirs = socket.socketpair()
    peer = Peer(theirs)
    async with await AgentClient.open(ours) as client:
        for call in (client.write_file("/x", b""), client.adopt([])):
            if client.lost is None:
                asked, stream = await ask(peer, call, Opcode.ADOPT)
                await peer.reply(stream, *fields)
            else:
                asked = call
            with pytest.raises(ProtocolError):
                await asked
    theirs.close()


async def test_a_program_whose_end_makes_no_sense_ends_the_line(line) -> None:
    client, peer = line
    starting, stream = await ask(peer, client.start_exec(Command(["x"])), Opcode.EXEC)
    await peer.send(encode_frame(Kind.EVENT, stream, STARTED))
    process = await starting
    await peer.reply(stream, b"exit", b"100000000000000000000", b"5")
    with pytest.raises(ProtocolError):
        await process.wait(timeout_s=30)
    assert isinstance(client.lost, ProtocolError)


async def test_a_file_that_is_too_large_is_copied_once(line, monkeypatch) -> None:
    """Its error holds what came. The guest decides how many frames still follow before the caller hears of it."""
    client, peer = line
    made = []
    monkeypatch.setattr(
        "vmfork.agent.exchange.LimitExceeded",
        lambda *args, **fields: made.append(1) or LimitExceeded(*args, **fields),
    )
    reading, stream = await ask(peer, client.read_file("/x", max_bytes=100), Opcode.READ)
    await peer.send(encode_data(stream, Channel.CONTENT, b"a" * 60) * 50)
    with pytest.raises(LimitExceeded) as caught:
        await reading
    assert caught.value.content == b"a" * 60 + b"a" * 40
    assert made == [1]


async def test_what_comes_behind_good_frames_and_makes_no_sense_is_told_at_once(line) -> None:
    client, peer = line
    pending, stream = await ask(peer, client.ping(timeout_s=None), Opcode.PING)
    other = asyncio.ensure_future(client.stat("/x", timeout_s=None))
    await peer.request(Opcode.STAT)
    await peer.send(encode_frame(Kind.REPLY, stream) + b"\x01")
    await pending
    with pytest.raises(ProtocolError, match="cannot start with byte"):
        await asyncio.wait_for(other, 30)


FLOODS = {
    "empty frames for nobody": encode_frame(Kind.EOF, 99, b"\0"),
    "idle bytes": IDLE,
    "idle bytes and frames": IDLE + encode_frame(Kind.DATA, 99, b"\0"),
    "errors of many fields": encode_frame(Kind.ERROR, 99, encode_fields(b"io", b"", b"0")),
}
PIECE = 60_000


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_of_one_guest_leaves_others_their_turn(line, flood: str) -> None:
    """Turns of the event loop are counted, and frames in each: what no machine is too slow or too busy for."""
    client, peer = line
    flooded, flooding = socket.socketpair()
    flooding.setblocking(False)
    data = FLOODS[flood] * (PIECE // len(FLOODS[flood]))
    frames, rested = 0, False

    async with await AgentClient.open(flooded, protocol=PROTOCOL) as hostile:
        take = hostile._take_frame

        def count(frame) -> bool:
            nonlocal frames
            frames += 1
            return take(frame)

        hostile._line._on_frame = count
        for _ in range(20):
            turns, most, answered = 0, 0, asyncio.ensure_future(answer(peer))
            pinged = asyncio.ensure_future(client.ping(timeout_s=None))
            while not pinged.done():
                with suppress(BlockingIOError):
                    flooding.send(data)
                before = frames
                await asyncio.sleep(0)
                turns += 1
                most = max(most, frames - before)
                rested |= hostile._line._resting is not None
            await answered
            assert turns < 20
            assert most <= FRAMES_A_TURN
        assert hostile.lost is None
        assert rested
    flooding.close()


async def answer(peer: Peer) -> None:
    stream, _ = await peer.request(Opcode.PING)
    await peer.reply(stream)


async def test_a_line_that_floods_rests_and_is_read_to_its_end(line) -> None:
    """All its frames are taken, some turns later; what was asked for is among them."""
    client, peer = line
    pending, stream = await ask(peer, client.ping(timeout_s=None), Opcode.PING)
    flood = encode_frame(Kind.EOF, 99, b"\0") * (10 * FRAMES_A_TURN + 1) + IDLE * 100_000
    await peer.send(flood + encode_frame(Kind.REPLY, stream))
    await asyncio.wait_for(pending, 30)
    assert client._line.is_quiet


async def test_a_line_may_be_closed_while_it_rests(line) -> None:
    client, peer = line
    await peer.send(encode_frame(Kind.EOF, 99, b"\0") * (3 * FRAMES_A_TURN))
    while client._line._resting is None:
        await asyncio.sleep(0)
    resting = client._line._resting
    await client.aclose()
    assert resting.cancelled()


CONNECTED = encode_fields(b"connected")


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([(Kind.DATA, b"\0early")], "outside of its connection"),
        ([(Kind.REPLY, b"")], "never stood"),
        ([(Kind.EVENT, STARTED)], "no event b'started'"),
        ([(Kind.EVENT, encode_fields(b"closed"))], "no event b'closed'"),
        ([(Kind.EVENT, encode_fields(b"connected", b"%d" % (FIRST_CREDIT - 1)))], "is no window"),
        ([(Kind.EVENT, encode_fields(b"connected", b"%d" % (MOST_CREDIT + 1)))], "is no window"),
        ([(Kind.EVENT, CONNECTED), (Kind.EOF, b"\0"), (Kind.DATA, b"\0late")], "outside of its connection"),
        ([(Kind.EVENT, CONNECTED), (Kind.DATA, b"\1other")], "which has none"),
        ([(Kind.EVENT, CONNECTED), (Kind.DATA, bytes(FIRST_CREDIT + 2))], "where 65536 may"),
        ([(Kind.EVENT, CONNECTED), (Kind.CREDIT, b"\0" + MOST_CREDIT.to_bytes(4))], "bytes ahead"),
    ],
)
async def test_a_connection_that_keeps_to_nothing_ends_the_line(line, frames, match: str) -> None:
    client, peer = line
    connecting, stream = await ask(peer, client.open_tunnel(80, timeout_s=None), Opcode.CONNECT)
    await peer.send(b"".join(encode_frame(kind, stream, payload) for kind, payload in frames))
    with pytest.raises(ProtocolError, match=match):
        await (await connecting).read(timeout_s=30)
        await client.ping(timeout_s=30)
    assert isinstance(client.lost, ProtocolError)


async def test_what_a_connection_sends_and_nobody_reads_is_held_as_far_as_the_credit(line) -> None:
    client, peer = line
    connecting, stream = await ask(peer, client.open_tunnel(80), Opcode.CONNECT)
    await peer.send(encode_frame(Kind.EVENT, stream, CONNECTED))
    connection = await connecting
    sent = await send_until_lost(client, peer, encode_data(stream, Channel.CONTENT, b"o" * 4096), most=1000)
    assert sent < 1000
    assert len(connection._tunnel._waiting) == FIRST_CREDIT


async def test_events_on_what_has_none_end_the_line(line) -> None:
    client, peer = line
    asking, stream = await ask(peer, client.ping(), Opcode.PING)
    await peer.send(encode_frame(Kind.EVENT, stream, CONNECTED))
    with pytest.raises(ProtocolError, match="nothing happens"):
        await asking


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([(Kind.EVENT, encode_fields(b"connection", b"%d" % number)) for number in range(1, 99)], "connections wait"),
        ([(Kind.EVENT, CONNECTED)], "no event b'connected' of a listener"),
        ([(Kind.EVENT, encode_fields(b"listening", b"1"))], "no event b'listening' of a listener"),
        ([(Kind.REPLY, b"")], "has ended by itself"),
        ([(Kind.DATA, b"\0x")], "which has none"),
    ],
    ids=["many", "connected", "listening", "reply", "data"],
)
async def test_a_listener_that_keeps_to_nothing_ends_the_line(line, frames, match: str) -> None:
    client, peer = line
    asking, stream = await ask(peer, client.listen(80, timeout_s=None), Opcode.LISTEN)
    await peer.send(b"".join(encode_frame(kind, stream, payload) for kind, payload in frames))
    with pytest.raises(ProtocolError, match=match):
        await asking
    assert isinstance(client.lost, ProtocolError)


async def test_a_listener_that_tells_of_callers_without_end_reaches_the_service_so_often_and_no_more(line) -> None:
    client, peer = line
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as service:
        address = HostAddress("127.0.0.1", service.getsockname()[1])
        opening, stream = await ask(peer, start_reverse(client, 80, address, timeout_s=None), Opcode.LISTEN)
        await peer.send(encode_frame(Kind.EVENT, stream, encode_fields(b"listening")))
        async with await opening as reverse:
            for number in range(1, 400):
                await peer.send(encode_frame(Kind.EVENT, stream, encode_fields(b"connection", b"%d" % number)))
                while client.lost is None and len(reverse._carrying) + len(reverse._listening._callers) < number:
                    await asyncio.sleep(0)
                assert len(reverse._carrying) <= MOST_TUNNELS
                if client.lost is not None:
                    break
            assert isinstance(client.lost, ProtocolError)
