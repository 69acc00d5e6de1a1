"""Greeting, taking over, breaking the protocol, ending."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmfork.agent.client import AgentClient
from vmfork.errors import GuestError, GuestFileError, ProtocolError
from vmfork.host.packing import Packing
from vmfork.wire.command import Command
from vmfork.wire.frame import (
    PAYLOAD_LIMIT,
    PROTOCOL,
    TAKE_OVER_PREAMBLE,
    Channel,
    Frame,
    FrameParser,
    Kind,
    Opcode,
    decode_fields,
    encode_data,
    encode_eof,
    encode_frame,
    encode_request,
)
from vmfork.wire.message import exec_request as encode_exec
from vmfork.wire.message import hello_request

if TYPE_CHECKING:
    import socket


def exec_request(stream: int, argv: list[str], *, stdin: bool = False) -> bytes:
    return encode_exec(stream, Command(argv, stdin=stdin))[0]


LIMIT_S = 30
NONCE = bytes(range(16))
CAPABILITIES = {
    "exec",
    "ports",
    "reverse",
    "names",
    "watch",
    "files",
    "adopt",
    "clock",
    "quiesce",
    "shutdown",
    "notify",
    "grown",
    "trees",
    "terminal",
    "limits",
    "left",
    "asks",
    "net",
    "disk",
}
EXEC_CAT = exec_request(7, ["cat"], stdin=True)
EXEC_SLEEP = exec_request(7, ["sleep", "60"])


def ask(sock: socket.socket, data: bytes, count: int) -> list[Frame]:
    """`data` is sent, and this many frames come back."""
    sock.settimeout(LIMIT_S)
    sock.sendall(data)
    parser, frames = FrameParser(), []
    while len(frames) < count:
        got = sock.recv(65536)
        assert got, "the agent ended"
        frames += parser.feed(got)
    assert len(frames) == count
    return frames


def greet(sock: socket.socket, before: bytes = b"") -> bytes:
    """What came before the nonce. The REPLY behind it is whole."""
    sock.settimeout(LIMIT_S)
    sock.sendall(before + hello_request(99, NONCE))
    got = b""
    while NONCE not in got or not FrameParser().feed(got.split(NONCE, 1)[1]):
        got += sock.recv(65536)
    before_nonce, behind = got.split(NONCE, 1)
    assert [(frame.kind, frame.stream) for frame in FrameParser().feed(behind)] == [(Kind.REPLY, 99)]
    return before_nonce


def error_code(frame: Frame) -> str:
    assert frame.kind is Kind.ERROR
    return decode_fields(frame.payload)[0].decode()


def host_boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_hello_tells_who_answers(start_agent) -> None:
    running = start_agent()
    async with await AgentClient.open(running.sock.dup()) as client:
        hello = await client.hello(take_over=False)
    assert hello.protocol == PROTOCOL
    assert hello.boot_id == host_boot_id()
    assert hello.capabilities == CAPABILITIES


def test_the_version_is_told(agent_binary: Path) -> None:
    told = subprocess.run([agent_binary, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"vmfork-agent 0.1.0 protocol {PROTOCOL}\n"


def test_arguments_that_make_no_sense_are_refused(agent_binary: Path) -> None:
    for argv in (["--nonsense"], ["--fd"], ["--fd", "x"]):
        assert subprocess.run([agent_binary, *argv], stderr=subprocess.DEVNULL, check=False).returncode == 2


@pytest.fixture
def speaking(request, compile_variant) -> Path:
    """An agent of the protocol that is the parameter: to compile it may take longer than a test may."""
    return compile_variant(f"protocol-{request.param}", f"-DPROTOCOL={request.param}")


@pytest.mark.parametrize("speaking", [0, PROTOCOL + 1], indirect=True)
async def test_an_agent_of_another_protocol_is_refused_by_name(start_agent, speaking: Path) -> None:
    running, protocol = start_agent(binary=speaking), speaking.name.partition("-")[2]
    async with await AgentClient.open(running.sock.dup()) as client:
        with pytest.raises(ProtocolError, match=f"speaks protocol {protocol}, this vmfork speaks 1, 2, 3, {PROTOCOL}"):
            await client.hello(take_over=False)


@pytest.mark.parametrize("speaking", [1], indirect=True)
async def test_an_agent_of_the_protocol_before_is_served_and_refuses_what_is_new_by_name(
    start_agent, speaking: Path, tmp_path: Path
) -> None:
    running = start_agent(binary=speaking)
    async with await AgentClient.open(running.sock.dup()) as client:
        hello = await client.hello(take_over=False)
        assert (hello.protocol, hello.capabilities) == (
            1,
            {"exec", "files", "adopt", "clock", "quiesce", "shutdown"},
        )
        with pytest.raises(GuestError, match="unsupported"):
            await client.notify(1.0)
        with pytest.raises(GuestFileError, match="does not know") as refused:
            await client.put(Packing(str(tmp_path)), str(tmp_path / "copy"))
        assert (refused.value.reason, "older" in refused.value.hint) == ("unsupported", True)
        for asking in (client.open_tunnel(80), client.check_ports()):
            with pytest.raises(GuestError, match="has no ports") as told:
                await asking
            assert "build the image" in told.value.hint
        with pytest.raises(GuestError, match="knows no network card") as told:
            await client.set_card("020000000001")
        assert "build the image" in told.value.hint
        with pytest.raises(GuestError, match="takes no disk") as told:
            await client.mount_disk()
        assert "build the image" in told.value.hint
        status, stdout, _ = await client.exec(Command(["echo", "served"]), timeout_s=20)
        assert (status.exit_code, stdout) == (0, b"served\n")


def test_the_first_bytes_may_be_any_request(start_agent) -> None:
    assert ask(start_agent().sock, encode_request(1, Opcode.PING), 1) == [Frame(Kind.REPLY, 1, b"")]


def test_requests_sent_together_are_all_answered(start_agent) -> None:
    pings = b"".join(encode_request(stream, Opcode.PING) for stream in range(1, 501))
    assert [frame.stream for frame in ask(start_agent().sock, pings, 500)] == list(range(1, 501))


def test_a_host_that_asks_and_does_not_listen_is_made_to_wait(start_agent) -> None:
    sock = start_agent().sock
    sock.settimeout(0.3)
    pings = b"".join(encode_request(stream, Opcode.PING) for stream in range(1, 10_001))
    with pytest.raises(TimeoutError):
        sock.sendall(pings * 200)


@pytest.mark.parametrize(
    "half",
    [
        encode_data(7, Channel.CONTENT, b"x" * 1000)[:500],
        encode_frame(Kind.DATA, 7, b"\0" * PAYLOAD_LIMIT)[:10],
        encode_request(8, Opcode.STAT, b"/etc")[:12],
        encode_request(8, Opcode.STAT, b"/etc")[:1],
        encode_request(8, Opcode.STAT, b"/etc")[:6],
        b"\x01 garbage",
        b"",
    ],
    ids=["data", "the longest", "fields", "one byte", "a header", "garbage", "nothing"],
)
def test_a_line_is_taken_over_in_the_middle_of_a_frame(start_agent, half: bytes) -> None:
    running = start_agent()
    ask(running.sock, EXEC_CAT, 1)
    assert len(children(running.process.pid)) == 1
    greet(running.sock, half + TAKE_OVER_PREAMBLE)
    assert ask(running.sock, encode_request(1, Opcode.PING), 1) == [Frame(Kind.REPLY, 1, b"")]


def test_taking_over_kills_what_ran_and_forgets_what_was_queued(start_agent) -> None:
    running = start_agent()
    flood = exec_request(7, ["cat", "/dev/zero"])
    running.sock.sendall(flood + EXEC_SLEEP.replace(b"\0\0\0\x07", b"\0\0\0\x08", 1))
    greet(running.sock, TAKE_OVER_PREAMBLE)
    # Nothing is open any more, the numbers are free, and no late bytes come.
    quiesced = ask(running.sock, encode_request(7, Opcode.QUIESCE), 1)
    assert quiesced[0].kind is Kind.REPLY
    # The agent reaps them as it is told of their end.
    end = time.monotonic() + LIMIT_S
    while children(running.process.pid) and time.monotonic() < end:
        ask(running.sock, encode_request(1, Opcode.PING), 1)
    assert children(running.process.pid) == []


@pytest.mark.parametrize(
    ("data", "stream"),
    [
        (b"\x01", 0),
        (bytes.fromhex("00040001 01 00000005 02"), 5),
        (bytes.fromhex("00000000 09 00000005"), 5),
        (bytes.fromhex("00000000 01 00000005"), 5),
        (bytes.fromhex("00000003 01 00000005 07 0000"), 5),
        (encode_request(0, Opcode.PING), 0),
        (encode_frame(Kind.REPLY, 5), 5),
        (encode_frame(Kind.EVENT, 5), 5),
        (encode_frame(Kind.DATA, 7), 7),
        (encode_frame(Kind.EOF, 7, b"\0\0"), 7),
        (encode_frame(Kind.CREDIT, 7, b"\0\0"), 7),
        (encode_frame(Kind.EOF, 7, b"\x03"), 7),
        (EXEC_CAT, 7),
        (encode_data(7, Channel.STDOUT, b"x"), 7),
        (encode_eof(7, Channel.STDERR), 7),
        (encode_data(7, Channel.CONTENT, b"x" * 65_537), 7),
    ],
    ids=[
        "no frame",
        "too long",
        "no kind",
        "no opcode",
        "half a field",
        "stream 0",
        "a reply",
        "an event",
        "no channel",
        "a long EOF",
        "a short credit",
        "no such channel",
        "a stream in use",
        "data on an output",
        "the end of an output",
        "data beyond credit",
    ],
)
def test_a_violation_is_told_ends_everything_and_leaves_only_hello(start_agent, data: bytes, stream: int) -> None:
    running = start_agent()
    ask(running.sock, EXEC_CAT, 1)
    # The PING behind it is not answered: nothing is, before the next HELLO.
    (complaint,) = ask(running.sock, data + encode_request(1, Opcode.PING), 1)
    assert (error_code(complaint), complaint.stream) == ("protocol", stream)
    assert greet(running.sock, encode_request(2, Opcode.PING)) == b""
    assert ask(running.sock, encode_request(7, Opcode.QUIESCE), 1)[0].kind is Kind.REPLY


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode_request(5, Opcode.GROWN), "unsupported"),
        (encode_request(5, Opcode.GROWN, b"2"), "invalid"),
        (encode_request(5, Opcode.NET), "invalid"),
        (encode_request(5, Opcode.NET, b"020000000001"), "unsupported"),
        (encode_frame(Kind.REQUEST, 5, b"\xc8"), "unsupported"),
        (encode_request(5, Opcode.PING, b"x"), "invalid"),
        (encode_request(5, Opcode.STAT), "invalid"),
        (encode_request(5, Opcode.STAT, b"/a\0b"), "invalid"),
        (encode_request(5, Opcode.STAT, b"/" * 5000), "invalid"),
        (encode_request(5, Opcode.REMOVE, b"//", b"recursive"), "invalid"),
        (encode_request(5, Opcode.REMOVE, b"/nowhere/..", b"recursive"), "invalid"),
        (encode_request(5, Opcode.REMOVE, b"/nowhere/./", b"recursive"), "invalid"),
        (encode_request(5, Opcode.REMOVE, b"/nowhere", b"gently"), "unsupported"),
        (encode_request(5, Opcode.READ, b"/etc/passwd", b"-1", b""), "invalid"),
        (encode_request(5, Opcode.READ, b"/etc/passwd", b"99999999999999999999", b""), "invalid"),
        (encode_request(5, Opcode.WRITE, b"/nowhere", b"888", b""), "invalid"),
        (encode_request(5, Opcode.WRITE, b"/nowhere", b"644", b"append,sideways"), "unsupported"),
        (encode_request(5, Opcode.WRITE, b"/nowhere", b"", b"", b"many"), "invalid"),
        (encode_request(5, Opcode.EXEC, b"", b"", b"", b"2", b"true"), "invalid"),
        (encode_request(5, Opcode.EXEC, b"pty", b"", b"", b"1", b"true"), "unsupported"),
        (encode_request(5, Opcode.EXEC, b"arguments", b"", b"", b"1", b"true"), "invalid"),
        (encode_request(5, Opcode.KILL, b"6", b"9"), "not-found"),
        (encode_request(5, Opcode.KILL, b"6", b"0"), "invalid"),
        (encode_request(5, Opcode.ADOPT, b"fork-id"), "invalid"),
        (encode_request(5, Opcode.HELLO, b"short", b"1"), "invalid"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_alone(start_agent, data: bytes, code: str) -> None:
    refused, pong = ask(start_agent().sock, data + encode_request(1, Opcode.PING), 2)
    assert (error_code(refused), refused.stream) == (code, 5)
    assert (pong.kind, pong.stream) == (Kind.REPLY, 1)


def test_frames_of_streams_that_are_not_open_are_ignored(start_agent) -> None:
    stray = encode_data(5, Channel.CONTENT, b"x") + encode_eof(5, Channel.CONTENT)
    stray += encode_frame(Kind.CREDIT, 5, b"\0\0\0\0\x01")
    assert len(ask(start_agent().sock, stray + encode_request(1, Opcode.PING), 1)) == 1


def test_frames_byte_by_byte_are_understood(start_agent) -> None:
    sock = start_agent().sock
    for byte in EXEC_CAT + encode_eof(7, Channel.CONTENT):
        sock.sendall(bytes((byte,)))
    kinds = [frame.kind for frame in ask(sock, b"", 4)]
    assert kinds == [Kind.EVENT, Kind.EOF, Kind.EOF, Kind.REPLY]


def test_credit_is_kept_to_the_byte(start_agent) -> None:
    sock = start_agent().sock
    request = exec_request(7, ["cat", "/dev/zero"])

    def data_behind(data: bytes, least: int) -> int:
        """How much comes: so much at least, and what else comes in a moment."""
        sock.sendall(data)
        parser, total = FrameParser(), 0
        try:
            while True:
                sock.settimeout(LIMIT_S if total < least else 0.2)
                for frame in parser.feed(sock.recv(65536)):
                    total += len(frame.payload) - 1 if frame.kind is Kind.DATA else 0
        except TimeoutError:
            return total

    assert data_behind(request, 65_536) == 65_536
    assert data_behind(encode_frame(Kind.CREDIT, 7, b"\x01\0\0\0\x05"), 5) == 5
    assert data_behind(encode_frame(Kind.CREDIT, 7, b"\x02\0\0\0\x05"), 0) == 0


def test_a_listing_with_little_credit_is_cut_to_it(start_agent, tmp_path: Path) -> None:
    for number in range(700):
        (tmp_path / f"{number}{'x' * 200}").touch()
    sock = start_agent().sock
    got, parser = 0, FrameParser()
    sock.sendall(encode_request(7, Opcode.LIST, str(tmp_path).encode()))
    sock.settimeout(LIMIT_S)
    while got < 65_536:
        got += sum(len(frame.payload) - 1 for frame in parser.feed(sock.recv(65536)))
    assert got == 65_536
    (more,) = ask(sock, encode_frame(Kind.CREDIT, 7, b"\0\0\0\0\x03"), 1)
    assert len(more.payload) == 1 + 3


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.WRITE])
def test_a_transfer_can_be_given_up(start_agent, tmp_path: Path, opcode: Opcode) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 200_000)
    last = b"" if opcode is Opcode.READ else b"append"
    sock = start_agent().sock
    ask(sock, encode_request(7, opcode, bytes(path), b"0", last), 1 if opcode is Opcode.READ else 0)
    cancelled, done = ask(sock, encode_request(8, Opcode.KILL, b"7", b"9"), 2)
    assert (error_code(cancelled), cancelled.stream) == ("cancelled", 7)
    assert (done.kind, done.stream) == (Kind.REPLY, 8)


async def test_quiesce_refuses_while_a_program_runs(agent) -> None:
    async with await agent.start_exec(Command(["sleep", "60"])):
        with pytest.raises(GuestError, match="busy"):
            await agent.quiesce()
    assert [(item.item, item.outcome) for item in await agent.quiesce()] == [
        ("exec", "ok"),
        ("sync", "unsupported"),
        ("caches", "unsupported"),
    ]


async def test_shutdown_answers_and_ends(start_agent) -> None:
    running = start_agent()
    async with await AgentClient.open(running.sock.dup()) as client:
        await client.shutdown()
        await asyncio.wait_for(asyncio.shield(client.closed), LIMIT_S)


def test_a_socket_that_closes_ends_the_agent_and_its_programs(start_agent) -> None:
    running = start_agent()
    ask(running.sock, EXEC_SLEEP, 1)
    (pid,) = children(running.process.pid)
    descriptor = os.pidfd_open(int(pid))
    running.finish()
    ended, _, _ = select.select([descriptor], [], [], LIMIT_S)
    os.close(descriptor)
    assert ended, f"process {pid} still runs"
