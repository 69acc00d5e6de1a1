"""The client against a scripted peer: what it does when the other side is slow, wrong or gone."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.unit.agent.peer import Peer
from vmfork.agent.client import AgentClient
from vmfork.errors import Closed, DeadlineExceeded, ExecError, GuestError, GuestFileError, ProtocolError
from vmfork.wire.command import Command
from vmfork.wire.frame import (
    PROTOCOL,
    TAKE_OVER_PREAMBLE,
    Channel,
    Frame,
    Kind,
    Opcode,
    decode_fields,
    encode_credit,
    encode_data,
    encode_fields,
    encode_frame,
)
from vmfork.wire.message import ItemOutcome

if TYPE_CHECKING:
    pass

HELLO = encode_fields(b"%d" % PROTOCOL, b"0.1.0", b"boot", b"exec")


async def started(peer: Peer) -> int:
    stream, _ = await peer.request(Opcode.EXEC)
    await peer.send(encode_frame(Kind.EVENT, stream, encode_fields(b"started", b"77")))
    return stream


async def test_hello_reads_from_behind_the_nonce(line) -> None:
    client, peer = line
    greeting = asyncio.ensure_future(client.hello(take_over=False))
    stream, (nonce, protocol) = await peer.request(Opcode.HELLO)
    assert (len(nonce), protocol) == (16, b"%d" % PROTOCOL)
    await peer.send(b"\x07left over" + nonce + encode_frame(Kind.REPLY, stream, HELLO))
    assert (await greeting).agent_version == "0.1.0"


async def test_taking_over_sends_the_idle_bytes_first(line) -> None:
    client, peer = line
    greeting = asyncio.ensure_future(client.hello(take_over=True))
    got = b""
    while len(got) <= len(TAKE_OVER_PREAMBLE):
        got += await asyncio.get_running_loop().sock_recv(peer.sock, 65536)
    assert got.startswith(TAKE_OVER_PREAMBLE)
    assert got[len(TAKE_OVER_PREAMBLE)] == 0
    greeting.cancel()


async def test_an_agent_of_another_protocol_is_refused_by_name(line) -> None:
    client, peer = line
    greeting = asyncio.ensure_future(client.hello(take_over=False))
    stream, (nonce, _) = await peer.request(Opcode.HELLO)
    await peer.send(nonce + encode_frame(Kind.REPLY, stream, encode_fields(b"9", b"x")))
    with pytest.raises(ProtocolError, match="protocol 9"):
        await greeting


async def test_a_line_that_ends_fails_what_is_open_and_what_comes_later(line) -> None:
    client, peer = line
    pending = [asyncio.ensure_future(client.ping()), asyncio.ensure_future(client.stat("/x"))]
    await peer.request(Opcode.PING)
    peer.sock.close()
    for call in pending:
        with pytest.raises(GuestError, match="agent is gone"):
            await call
    await client.closed
    with pytest.raises(GuestError, match="agent is gone"):
        await client.ping()


async def test_a_reason_that_is_given_takes_the_place_of_the_one_known(line) -> None:
    client, peer = line
    reason = GuestError("the machine was powered off")
    pending = asyncio.ensure_future(client.ping())
    await peer.request(Opcode.PING)
    client.fail(reason)
    with pytest.raises(GuestError, match="powered off"):
        await pending
    assert client.closed.done()
    client.fail(GuestError("QEMU crashed"))
    with pytest.raises(GuestError, match="QEMU crashed"):
        await client.ping()


async def test_a_closed_client_says_so() -> None:
    ours, theirs = socket.socketpair()
    client = await AgentClient.open(ours)
    await client.aclose()
    await client.aclose()
    with pytest.raises(Closed):
        await client.ping()
    theirs.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x01",
        encode_frame(Kind.REQUEST, 1, b"\x02"),
        encode_frame(Kind.DATA, 1, b"\x01x"),
        encode_frame(Kind.ERROR, 0, encode_fields(b"protocol", b"what?", b"0")),
        encode_frame(Kind.ERROR, 1, b"no fields"),
    ],
    ids=["no frame", "a request", "data nobody asked for", "a complaint", "an error that does not parse"],
)
async def test_an_agent_that_makes_no_sense_loses_the_line(line, data: bytes) -> None:
    client, peer = line
    pending = asyncio.ensure_future(client.ping())
    await peer.request(Opcode.PING)
    await peer.send(data)
    with pytest.raises(ProtocolError):
        await pending
    assert isinstance(client.lost, ProtocolError)


async def test_frames_of_streams_that_are_not_open_are_ignored(line) -> None:
    client, peer = line
    pending = asyncio.ensure_future(client.ping())
    stream, _ = await peer.request(Opcode.PING)
    await peer.send(encode_data(999, Channel.STDOUT, b"x") + encode_frame(Kind.REPLY, 998))
    await peer.reply(stream)
    await pending


async def test_a_late_answer_after_a_deadline_harms_nothing(line) -> None:
    client, peer = line
    with pytest.raises(DeadlineExceeded) as caught:
        await client.ping(timeout_s=0.02)
    assert caught.value.limit_s == 0.02
    stream, _ = await peer.request(Opcode.PING)
    await peer.reply(stream)
    pending = asyncio.ensure_future(client.ping())
    later, _ = await peer.request(Opcode.PING)
    assert later != stream
    await peer.reply(later)
    await pending


async def test_a_transfer_that_is_cancelled_is_given_up_in_the_guest(line) -> None:
    client, peer = line
    writing = asyncio.ensure_future(client.write_file("/x", b"z" * 200_000))
    stream, _ = await peer.request(Opcode.WRITE)
    writing.cancel()
    sent = 0
    while (frame := await peer.frame()).kind is Kind.DATA:
        sent += len(frame.payload) - 1
    assert sent == 65_536
    assert frame.payload[0] == Opcode.KILL
    assert decode_fields(frame.payload[1:])[0] == b"%d" % stream
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_telling_the_watchers_gives_what_became_of_each_and_is_given_up_in_the_guest(line) -> None:
    client, peer = line
    notified = asyncio.ensure_future(client.notify(0.25))
    stream, fields = await peer.request(Opcode.NOTIFY)
    assert fields == (b"250",)
    await peer.reply(stream, b"17", b"ok", b"g", b"18", b"timeout", b"")
    assert await notified == [ItemOutcome("17", "ok", b"g"), ItemOutcome("18", "timeout", b"")]
    with pytest.raises(DeadlineExceeded, match="telling the programs"):
        await client.notify(60.0, timeout_s=0.01)
    stream, _ = await peer.request(Opcode.NOTIFY)
    _, fields = await peer.request(Opcode.KILL)
    assert fields == (b"%d" % stream, b"9")


async def test_an_exec_that_is_cancelled_is_killed_and_what_it_still_writes_gets_credit(line) -> None:
    client, peer = line
    running = asyncio.ensure_future(client.exec(Command(["x"])))
    stream = await started(peer)
    running.cancel()
    killer, fields = await peer.request(Opcode.KILL)
    assert fields == (b"%d" % stream, b"9")
    assert [(await peer.frame()).kind for _ in range(3)] == [Kind.CREDIT] * 3
    await peer.send(encode_data(stream, Channel.STDOUT, b"x" * 40_000))
    await peer.reply(killer)
    await peer.reply(stream, b"signal", b"9", b"1")
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize(
    ("code", "error", "exit_code"),
    [(b"not-found", ExecError, 127), (b"not-executable", ExecError, 126), (b"no-user", GuestError, None)],
)
async def test_a_program_that_does_not_start_is_the_error_of_a_shell(line, code, error, exit_code) -> None:
    client, peer = line
    pending = asyncio.ensure_future(client.start_exec(Command(["x"], user="u")))
    stream, _ = await peer.request(Opcode.EXEC)
    await peer.refuse(stream, code)
    with pytest.raises(error) as caught:
        await pending
    assert getattr(caught.value, "exit_code", None) == exit_code


async def test_a_file_error_keeps_operation_path_and_reason(line) -> None:
    client, peer = line
    pending = asyncio.ensure_future(client.read_file("/gone"))
    stream, _ = await peer.request(Opcode.READ)
    await peer.refuse(stream, b"not-found", errno=2)
    with pytest.raises(GuestFileError, match="read /gone: No such file") as caught:
        await pending
    assert (caught.value.operation, caught.value.path, caught.value.reason) == ("read", "/gone", "not-found")


async def test_a_command_larger_than_a_frame_follows_its_request_within_the_credit(line) -> None:
    client, peer = line
    argv = ["x", *["y" * 100_000] * 3]
    running = asyncio.ensure_future(client.exec(Command(argv, env={"A": "1"}), input=b"in"))
    stream, fields = await peer.request(Opcode.EXEC)
    assert fields == (b"stdin,arguments", b"", b"", b"4")
    lists = b""
    while (frame := await peer.frame()).kind is Kind.DATA:
        assert frame.payload[0] == Channel.ARGUMENTS
        lists += frame.payload[1:]
        await peer.send(encode_credit(stream, Channel.ARGUMENTS, len(frame.payload) - 1))
    assert frame == Frame(Kind.EOF, stream, bytes((Channel.ARGUMENTS,)))
    assert decode_fields(lists) == (*map(str.encode, argv), b"A=1")
    # The input comes behind it: the agent has no program to give it to before.
    assert await peer.frame() == Frame(Kind.DATA, stream, b"\0in")
    await peer.reply(stream, b"exit", b"0", b"5")
    await running


async def test_a_command_larger_than_a_frame_is_an_error_of_that_command_alone_for_an_old_agent() -> None:
    ours, theirs = socket.socketpair()
    peer = Peer(theirs)
    async with await AgentClient.open(ours, protocol=2) as client:
        with pytest.raises(ExecError, match="300014 bytes") as caught:
            await client.exec(Command(["x", "y" * 300_000, "A"]))
        assert caught.value.exit_code == 126
        pending = asyncio.ensure_future(client.ping())
        stream, _ = await peer.request(Opcode.PING)
        await peer.reply(stream)
        await pending
    theirs.close()


async def test_an_old_agent_is_asked_what_it_speaks_once_and_gets_what_it_knows() -> None:
    ours, theirs = socket.socketpair()
    peer = Peer(theirs)
    async with await AgentClient.open(ours) as client:
        for _ in range(2):
            writing = asyncio.ensure_future(client.write_file("/x", b"abc"))
            frame = await peer.frame()
            if frame.payload[0] == Opcode.ADOPT:
                assert decode_fields(frame.payload[1:]) == (b"protocol", b"%d" % PROTOCOL)
                await peer.reply(frame.stream, b"protocol", b"unsupported", b"")
                frame = await peer.frame()
            assert decode_fields(frame.payload[1:]) == (b"/x", b"644", b"")
            assert [(await peer.frame()).kind for _ in range(2)] == [Kind.DATA, Kind.EOF]
            await peer.reply(frame.stream, b"3")
            await writing
        running = asyncio.ensure_future(client.exec(Command(["x"]), timeout_s=10))
        stream, fields = await peer.request(Opcode.EXEC)
        assert fields[0] == b""
        await peer.reply(stream, b"exit", b"0", b"5")
        await running
    theirs.close()


async def test_a_limit_of_time_asks_for_a_contained_program(line) -> None:
    client, peer = line
    running = asyncio.ensure_future(client.exec(Command(["x"]), timeout_s=10))
    stream, fields = await peer.request(Opcode.EXEC)
    assert fields[0] == b"contained"
    await peer.reply(stream, b"exit", b"0", b"5")
    await running


async def test_programs_wait_for_their_turn_and_files_do_not_wait_for_programs(line, monkeypatch) -> None:
    monkeypatch.setattr("vmfork.agent.connection.MOST_OPEN", 32)
    client, peer = line
    running = [asyncio.ensure_future(client.exec(Command(["x"]))) for _ in range(32)]
    open_ones = [(await peer.request(Opcode.EXEC))[0] for _ in range(30)]
    reading = asyncio.ensure_future(client.list_dir("/x"))
    frame = await peer.frame()
    assert frame.payload[0] == Opcode.LIST
    await peer.frame()
    await peer.reply(frame.stream, b"0")
    await reading
    for stream in open_ones[:2]:
        await peer.reply(stream, b"exit", b"0", b"5")
        open_ones.append((await peer.request(Opcode.EXEC))[0])
    for stream in open_ones[2:]:
        await peer.reply(stream, b"exit", b"0", b"5")
    await asyncio.gather(*running)


async def test_who_waits_for_a_turn_is_told_of_the_limit_and_of_the_end(line, monkeypatch) -> None:
    monkeypatch.setattr("vmfork.agent.connection.MOST_OPEN", 16)
    client, peer = line
    running = [asyncio.ensure_future(client.exec(Command(["x"]))) for _ in range(17)]
    for _ in range(15):
        await peer.request(Opcode.EXEC)
    with pytest.raises(DeadlineExceeded):
        await client.exec(Command(["y"]), timeout_s=0.05)
    await client.aclose()
    assert {type(error) for error in await asyncio.gather(*running, return_exceptions=True)} == {Closed}


async def test_output_is_credited_only_when_it_is_taken(line) -> None:
    client, peer = line
    starting = asyncio.ensure_future(client.start_exec(Command(["x"])))
    stream = await started(peer)
    process = await starting
    assert process.pid == 77
    await peer.send(encode_data(stream, Channel.STDOUT, b"a" * 30_000) * 2)
    output = process.output()
    assert await anext(output) == (Channel.STDOUT, b"a" * 30_000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.frame(), 0.02)
    await anext(output)
    assert (await peer.frame()) == Frame(Kind.CREDIT, stream, b"\x01" + (30_000).to_bytes(4))
    await peer.reply(stream, b"exit", b"0", b"5")
    with pytest.raises(StopAsyncIteration):
        await anext(output)


async def test_a_guest_that_sends_more_than_it_may_is_not_listened_to(line) -> None:
    """What nobody takes is held by the host: its size is not the guest's to decide."""
    client, peer = line
    starting = asyncio.ensure_future(client.start_exec(Command(["x"])))
    stream = await started(peer)
    process = await starting
    await peer.send(encode_data(stream, Channel.STDOUT, b"a" * 65_536))
    output = process.output()
    assert (await anext(output))[1] == b"a" * 65_536
    await peer.send(encode_data(stream, Channel.STDOUT, b"b"))
    with pytest.raises(ProtocolError, match="65537 bytes wait on channel 1, where 65536 may"):
        await process.wait(timeout_s=5)


@pytest.mark.parametrize("frame", [encode_data(1, Channel.ARGUMENTS, b"x"), encode_data(1, Channel.CONTENT, b"x")])
async def test_data_on_a_channel_that_a_program_has_not_ends_the_line(line, frame) -> None:
    client, peer = line
    running = asyncio.ensure_future(client.exec(Command(["x"])))
    stream = await started(peer)
    await peer.send(frame[:5] + stream.to_bytes(4) + frame[9:])
    with pytest.raises(ProtocolError):
        await asyncio.wait_for(running, 60)
    assert isinstance(client.lost, ProtocolError)


async def test_a_wait_that_is_cancelled_can_be_repeated(line) -> None:
    client, peer = line
    starting = asyncio.ensure_future(client.start_exec(Command(["x"])))
    stream = await started(peer)
    process = await starting
    with pytest.raises(DeadlineExceeded):
        await process.wait(timeout_s=0.01)
    waiting = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await peer.reply(stream, b"signal", b"15", b"5")
    assert (await process.wait()).exit_code == 143


async def test_input_stops_at_the_credit(line) -> None:
    client, peer = line
    starting = asyncio.ensure_future(client.start_exec(Command(["x"], stdin=True)))
    stream = await started(peer)
    process = await starting
    writing = asyncio.ensure_future(process.write_stdin(b"i" * 65_537))
    assert len((await peer.frame()).payload) == 1 + 65_536
    assert not writing.done()
    await peer.send(encode_frame(Kind.CREDIT, stream, b"\0\0\0\0\x01"))
    assert len((await peer.frame()).payload) == 1 + 1
    await writing
    await process.close_stdin()
    assert (await peer.frame()).kind is Kind.EOF
    with pytest.raises(Closed):
        await process.write_stdin(b"x")
    await client.aclose()  # ends the process, which nobody closed


async def test_a_process_whose_agent_is_lost_tells_why(line) -> None:
    client, peer = line
    starting = asyncio.ensure_future(client.start_exec(Command(["x"], stdin=True)))
    stream = await started(peer)
    process = await starting
    await peer.send(encode_data(stream, Channel.STDOUT, b"last words"))
    peer.sock.close()
    output = process.output()
    assert (await anext(output))[1] == b"last words"
    for call in (anext(output), process.wait(), process.write_stdin(b"x")):
        with pytest.raises(GuestError, match="agent is gone"):
            await call


async def test_the_clock_is_read_right_before_it_is_sent(line) -> None:
    client, peer = line
    pending = asyncio.ensure_future(client.clock(lambda: 123))
    stream, fields = await peer.request(Opcode.CLOCK)
    assert fields == (b"123",)
    await peer.reply(stream, b"124", b"9")
    reading = await pending
    assert (reading.wall_ns, reading.monotonic_ns) == (124, 9)
    assert reading.sent_ns <= reading.received_ns <= time.time_ns()


async def test_greeting_anew_ends_what_was_open(line) -> None:
    client, peer = line
    pending = asyncio.ensure_future(client.ping())
    await peer.request(Opcode.PING)
    greeting = asyncio.ensure_future(client.hello(take_over=False))
    with pytest.raises(GuestError, match="greeted anew"):
        await pending
    stream, (nonce, _) = await peer.request(Opcode.HELLO)
    await peer.send(nonce + encode_frame(Kind.REPLY, stream, HELLO))
    await greeting
