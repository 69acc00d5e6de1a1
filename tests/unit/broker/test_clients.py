"""Several clients of one machine, each as if it were alone; and one that leaves takes nothing but its own along."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import struct
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.unit.broker.conftest import LIMIT_S
from vmfork.errors import ExecError, GuestError, PortError
from vmfork.wire.command import Command
from vmfork.wire.frame import Channel, Kind, Opcode, encode_data, encode_frame, encode_request

HELLO = encode_request(1, Opcode.HELLO, b"n" * 16, b"3")


def sh(script: str, **options) -> Command:
    return Command(["/bin/sh", "-c", script], **options)


async def is_gone(pid: int) -> bool:
    """Whether the process ends within the limit. The agent, its parent, reaps it."""
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            ended = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(fd, lambda: ended.done() or ended.set_result(None))
            await asyncio.wait_for(ended, LIMIT_S)
        except TimeoutError:
            return False
        finally:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
    return True


async def receive_all(sock) -> bytes:
    """What comes until the other side closes."""
    loop, data = asyncio.get_running_loop(), b""
    while piece := await asyncio.wait_for(loop.sock_recv(sock, 65536), LIMIT_S):
        data += piece
    return data


async def test_each_gets_its_own_output_and_status(start) -> None:
    brokered = await start()
    clients = [await brokered.client() for _ in range(5)]

    async def run(number: int) -> None:
        for turn in range(5):
            script = f"cat; echo out-{number}-{turn}; echo err-{number}-{turn} >&2; exit {number}"
            told = f"in-{number}-{turn}\n".encode()
            status, stdout, stderr = await clients[number].exec(sh(script), input=told, timeout_s=LIMIT_S)
            assert status.exit_code == number
            assert stdout == told + f"out-{number}-{turn}\n".encode()
            assert stderr == f"err-{number}-{turn}\n".encode()

    await asyncio.gather(*map(run, range(5)))
    for client in clients:
        await client.aclose()


async def test_a_greeting_is_the_agents_own(start) -> None:
    brokered = await start()
    client = await brokered.client()
    greeting = await client.hello(take_over=True, timeout_s=LIMIT_S)
    assert (greeting.agent_version, greeting.boot_id, greeting.capabilities) == ("a test's", "a-boot-id", {"notify"})
    await client.aclose()


async def test_a_signal_reaches_the_program_of_its_client_alone(start) -> None:
    """Both clients know theirs as stream 3 or so: the number is translated, or the wrong one is killed."""
    brokered = await start()
    one, other = await brokered.client(), await brokered.client()
    mine = await one.start_exec(sh("exec sleep 1000"))
    theirs = await other.start_exec(sh("read line; echo $line", stdin=True))
    await mine.kill(signal.SIGTERM)
    status = await mine.wait(timeout_s=LIMIT_S)
    assert (status.kind, status.number) == ("signal", signal.SIGTERM)
    await theirs.write_stdin(b"still here\n")
    assert [data async for _, data in theirs.output()] == [b"still here\n"]
    await one.aclose()
    await other.aclose()


async def test_what_a_client_that_leaves_had_running_ends_and_nothing_else(start) -> None:
    brokered = await start()
    leaving, staying = await brokered.client(), await brokered.client()
    flood = await leaving.start_exec(sh("exec yes"))
    sleeper = await leaving.start_exec(sh("exec sleep 1000"))
    kept = await staying.start_exec(sh("exec sleep 1000"))
    leaving.drop()  # as when its process is killed: nobody says goodbye
    assert await is_gone(flood.pid)
    assert await is_gone(sleeper.pid)
    assert not kept.has_ended
    status, stdout, _ = await staying.exec(sh("echo fine"), timeout_s=LIMIT_S)
    assert (status.exit_code, stdout) == (0, b"fine\n")
    await staying.aclose()


async def test_a_client_that_does_not_read_holds_up_nobody(shipped, start) -> None:
    brokered = await start()
    with brokered.connect() as deaf:
        deaf.setblocking(True)
        deaf.send(HELLO + encode_request(2, Opcode.EXEC, b"", b"/", b"", b"1", b"yes"))
        # More than it will ever be sent: what waits for it stays bounded all the same.
        deaf.send(encode_frame(Kind.CREDIT, 2, b"\x01" + struct.pack(">I", 0x7FFFFFFF)))
        client = await brokered.client()
        content = os.urandom(3_000_000)
        await client.write_file(str(brokered.folder / "file"), content, timeout_s=LIMIT_S)
        assert await client.read_file(str(brokered.folder / "file"), timeout_s=LIMIT_S) == content
        status = Path(f"/proc/{brokered.pid}/status").read_text()
        resident_kib = int(status.partition("VmRSS:")[2].split()[0])
        assert resident_kib < 8 * 1024
        await client.aclose()


async def test_what_it_costs_at_rest(shipped, start) -> None:
    brokered = await start()
    client = await brokered.client()
    await client.exec(sh("head -c 3000000 /dev/zero"), timeout_s=LIMIT_S)
    status = Path(f"/proc/{brokered.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) <= 2 * 1024
    await client.aclose()


async def test_megabytes_go_through_both_ways_while_another_works(start) -> None:
    brokered = await start()
    one, other = await brokered.client(), await brokered.client()
    content = os.urandom(8_000_000)

    async def both_ways() -> str:
        _, stdout, _ = await one.exec(sh("cat"), input=content, timeout_s=LIMIT_S)
        return hashlib.sha256(stdout).hexdigest()

    copying = asyncio.ensure_future(both_ways())
    while not copying.done():
        await other.ping(timeout_s=LIMIT_S)
    assert copying.result() == hashlib.sha256(content).hexdigest()
    await one.aclose()
    await other.aclose()


async def test_a_command_longer_than_a_frame_and_its_input(start) -> None:
    brokered = await start()
    client = await brokered.client()
    command = Command(["/bin/sh", "-c", "wc -c; printf %s $#", "sh", *(["x" * 100_000] * 5)])
    status, stdout, _ = await client.exec(command, input=b"12345", timeout_s=LIMIT_S)
    assert (status.exit_code, stdout.split()) == (0, [b"5", b"5"])
    await client.aclose()


async def test_what_a_guest_refuses_is_told_as_to_an_owner(start) -> None:
    brokered = await start()
    client = await brokered.client()
    with pytest.raises(ExecError) as error:
        await client.exec(Command(["no-such-program"]), timeout_s=LIMIT_S)
    assert error.value.exit_code == 127
    await client.aclose()


@pytest.mark.parametrize("opcode", [Opcode.ADOPT, Opcode.QUIESCE, Opcode.GROWN, Opcode.SHUTDOWN, Opcode.NOTIFY])
async def test_what_only_an_owner_may_do_is_denied(start, opcode) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    with pytest.raises(GuestError, match="only the owner"):
        await client._command(opcode, "an owner's request", LIMIT_S)
    await client.aclose()


async def test_a_request_that_is_not_known_is_not_passed_on(start) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    with pytest.raises(GuestError, match="does not know"):
        await client._command(200, "a request of the future", LIMIT_S)
    await client.aclose()


@pytest.mark.parametrize(
    "broken",
    [
        b"\x01 no frame",
        encode_frame(Kind.REPLY, 3),
        encode_frame(Kind.REQUEST, 0, bytes([Opcode.PING])),
        encode_frame(Kind.REQUEST, 3, bytes([Opcode.PING]) + b"no fields"),
        encode_frame(Kind.CREDIT, 2, b"\x09" + bytes(4)),
        encode_frame(Kind.CREDIT, 2, b"\x01"),
        encode_frame(Kind.EOF, 2, b"\x03"),
        encode_data(2, Channel.STDOUT, b"on a channel that comes from the guest"),
        encode_data(2, Channel.CONTENT, bytes(65536)) + encode_data(2, Channel.CONTENT, b"beyond its credit"),
        encode_request(2, Opcode.PING),
    ],
    ids=["bytes", "reply", "stream 0", "fields", "channel", "credit", "eof", "direction", "beyond", "in use"],
)
async def test_a_client_that_breaks_the_protocol_is_let_go_and_the_line_is_as_before(start, broken) -> None:
    brokered = await start()
    other = await brokered.client()
    kept = await other.start_exec(sh("exec sleep 1000"))
    with brokered.connect() as sock:
        running = encode_request(2, Opcode.EXEC, b"stdin", b"/", b"", b"2", b"sleep", b"1000")
        await asyncio.get_running_loop().sock_sendall(sock, HELLO + running + broken)
        assert b"protocol" in await receive_all(sock)
    assert not kept.has_ended
    status, _, _ = await other.exec(sh("exit 7"), timeout_s=LIMIT_S)
    assert status.exit_code == 7
    await other.aclose()


async def test_what_runs_and_what_went_through_is_counted_for_all_of_them(start) -> None:
    brokered = await start()
    one, other = await brokered.client(), await brokered.client()
    before = await one.count()
    process = await other.start_exec(sh("read line; echo $line", stdin=True))
    during = await one.count()
    assert (before["programs"], during["programs"], during["clients"]) == (0, 1, 2)
    await process.write_stdin(b"x" * 50_000 + b"\n")
    await process.wait(timeout_s=LIMIT_S)
    after = await one.count()
    assert after["programs"] == 0
    for way in ("sent", "received"):
        assert 50_000 <= after[way] - before[way] < 100_000
    for client in (one, other):
        await client.aclose()


async def test_connections_to_ports_go_through_and_end_with_their_client(start) -> None:
    """The agent runs on the host, so the port that it connects to is one of the host."""
    brokered = await start()
    lost = asyncio.Event()
    content = os.urandom(3_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            lost.set()
        writer.close()

    async def both_ways(client) -> None:
        connection = await client.open_tunnel(port)
        writing = asyncio.ensure_future(connection.write(content, timeout_s=LIMIT_S))
        got = b""
        while len(got) < len(content):
            got += await connection.read(timeout_s=LIMIT_S)
        await writing
        await connection.write_eof()
        assert (got, await connection.read(timeout_s=LIMIT_S)) == (content, b"")
        await connection.aclose()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = [await brokered.client() for _ in range(3)]
    await asyncio.gather(*map(both_ways, clients))
    listening = await clients[1].listen(guest_port := free_port())
    reader, writer = await asyncio.open_connection("127.0.0.1", guest_port)
    attached = await clients[1].attach(listening, await listening.next_caller(), port=guest_port)
    await attached.write(b"hello")
    assert await reader.read(5) == b"hello"
    writer.write(b"back")
    assert await attached.read(timeout_s=LIMIT_S) == b"back"
    writer.close()
    with pytest.raises(PortError, match="nothing is open on that stream"):
        await clients[2].attach(listening, 1, port=guest_port)  # it is another client's
    leaving = await clients[0].open_tunnel(port)
    await leaving.write(b"a")
    assert await leaving.read() == b"a"
    clients[0].drop()  # as when its process is killed
    await asyncio.wait_for(lost.wait(), LIMIT_S)
    with pytest.raises(PortError, match="a port from 1 to 65535"):
        await clients[1].open_tunnel(0)
    for client in clients[1:]:
        await client.aclose()
    server.close()
