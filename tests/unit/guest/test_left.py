"""Programs that run on though their client is gone: left by one greeting, and taken by whoever greeted so."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.children import wait_gone
from vmfork.agent.client import AgentClient
from vmfork.errors import GuestError
from vmfork.wire.command import Command, Window
from vmfork.wire.frame import PAYLOAD_LIMIT, Channel, Kind, Opcode, encode_data, encode_frame, encode_request
from vmfork.wire.message import exec_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmfork.agent.process import GuestProcess


@asynccontextmanager
async def next_client(running, *, keep=("programs",), half: bytes = b"") -> AsyncIterator[AgentClient]:
    """A client of a line whose last client has gone in the middle of a frame, as in a fork of a running machine."""
    running.sock.sendall(half)
    async with await AgentClient.open(running.sock.dup()) as client:
        await client.hello(take_over=True, keep=keep, timeout_s=10)
        yield client


async def begin(running, *argv: str, before: bytes = b"", **options: object) -> int:
    """The process id of a program that its client has left, after it wrote `before`, if anything."""
    client = await AgentClient.open(running.sock.dup())
    process = await client.start_exec(Command(list(argv), **options))
    got = b""
    if before:
        async for _, data in process.output():
            got += data
            if got == before:
                break
    client.drop()
    return process.pid


async def take_one(client: AgentClient) -> GuestProcess:
    (left,) = await client.list_left()
    return await client.take_left(left)


async def read_all(process: GuestProcess) -> dict[Channel, bytes]:
    got = {Channel.STDOUT: b"", Channel.STDERR: b""}
    async for channel, data in process.output():
        got[channel] += data
    return got


async def test_a_program_runs_on_and_is_the_next_clients_who_reads_feeds_and_ends_it(start_agent) -> None:
    running = start_agent()
    pid = await begin(running, "sh", "-c", "echo ready; exec cat", stdin=True, before=b"ready\n")
    async with next_client(running) as client:
        (left,) = await client.list_left()
        assert (left.pid, left.argv, left.has_stdin) == (pid, ("sh", "-c", "echo ready; exec cat"), True)
        process = await client.take_left(left)
        assert await client.list_left() == ()
        await process.write_stdin(b"x" * 300_000)
        await process.close_stdin()
        assert (await read_all(process))[Channel.STDOUT] == b"x" * 300_000
        assert (process.pid, (await process.wait()).exit_code) == (pid, 0)


async def test_what_it_writes_and_how_it_ends_waits_for_who_takes_it(start_agent, tmp_path) -> None:
    running = start_agent()
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    script = f"read go < {fifo}; head -c 30000 /dev/zero; echo error >&2; exit 7"
    pid = await begin(running, "sh", "-c", script)
    pidfd = os.pidfd_open(pid)
    async with next_client(running) as client:
        fifo.write_bytes(b"go\n")
        assert wait_gone(pidfd, limit_s=60)
        process = await take_one(client)
        assert await read_all(process) == {Channel.STDOUT: bytes(30_000), Channel.STDERR: b"error\n"}
        assert (await process.wait()).exit_code == 7
        assert await client.list_left() == ()
    os.close(pidfd)


async def test_one_that_writes_more_than_its_pipe_holds_waits_and_loses_nothing(start_agent) -> None:
    running = start_agent()
    await begin(running, "sh", "-c", "echo ready; read go; exec seq 100000", stdin=True, before=b"ready\n")
    async with next_client(running) as client:
        process = await take_one(client)
        await process.write_stdin(b"go\n")
        # Of what no other frame follows, a frame that was cut cannot be told.
        await client.ping()
    async with next_client(running) as client:
        process = await take_one(client)
        got = (await read_all(process))[Channel.STDOUT]
        # What the client before was sent already, 64 KiB at most, is that one's.
        whole = b"".join(b"%d\n" % number for number in range(1, 100_001))
        assert whole.endswith(got)
        assert len(whole) - len(got) <= 65_536
        assert (await process.wait()).exit_code == 0


async def test_a_greeting_that_keeps_nothing_ends_what_was_left(start_agent) -> None:
    running = start_agent()
    pidfd = os.pidfd_open(await begin(running, "sleep", "600"))
    async with next_client(running) as client:
        assert len(await client.list_left()) == 1
    async with next_client(running, keep=()) as client:
        assert await client.list_left() == ()
        assert wait_gone(pidfd, limit_s=60)
    os.close(pidfd)


HALVES = {
    "input": encode_data(1, Channel.CONTENT, b"x" * 1000)[:500],
    "the last byte": encode_data(1, Channel.CONTENT, b"x" * 1000)[:-1],
    "the longest": encode_frame(Kind.DATA, 1, b"\0" * PAYLOAD_LIMIT)[:10],
    "a command": exec_request(8, Command(["sh", "-c", "exit 0"]))[0][:-3],
    "a path": encode_request(8, Opcode.REMOVE, b"/nowhere/at/all", b"")[:-12],
    "a signal": encode_request(8, Opcode.KILL, b"1", b"9")[:-1],
    "a header": encode_request(8, Opcode.STAT, b"/etc")[:6],
    "nothing": b"",
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
async def test_a_half_sent_frame_of_the_client_before_reaches_nobody(start_agent, half: bytes) -> None:
    """Filled up with idle bytes it would be input that nobody sent, or a request that nobody made."""
    running = start_agent()
    await begin(running, "sh", "-c", "echo ready; exec cat", stdin=True, before=b"ready\n")
    async with next_client(running, half=half) as client:
        process = await take_one(client)
        await process.write_stdin(b"mine")
        await process.close_stdin()
        assert (await read_all(process))[Channel.STDOUT] == b"mine"
        assert (await process.wait()).exit_code == 0


async def test_input_that_came_whole_is_still_given_to_the_program(start_agent, tmp_path) -> None:
    running = start_agent()
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    client = await AgentClient.open(running.sock.dup())
    process = await client.start_exec(Command(["sh", "-c", f"read go < {fifo}; exec cat"], stdin=True))
    # More than a pipe holds: the rest waits in the agent.
    await process.write_stdin(bytes(100_000))
    await client.ping()
    client.drop()
    async with next_client(running) as client:
        fifo.write_bytes(b"go\n")
        process = await take_one(client)
        await process.write_stdin(b"and more")
        await process.close_stdin()
        assert (await read_all(process))[Channel.STDOUT] == bytes(100_000) + b"and more"


async def test_a_terminal_is_taken_with_its_program(start_agent) -> None:
    running = start_agent()
    script = "echo ready; read line; stty size; exit 3"
    await begin(running, "sh", "-c", script, window=Window(24, 80), before=b"ready\r\n")
    async with next_client(running) as client:
        process = await take_one(client)
        await process.resize(30, 90)
        await process.write_stdin(b"\n")
        assert (await read_all(process))[Channel.STDOUT] == b"\r\n30 90\r\n"
        assert (await process.wait()).exit_code == 3


async def test_it_can_be_killed_with_all_that_it_started_once_it_is_taken(start_agent, tmp_path) -> None:
    running = start_agent()
    told = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {told}; echo ready; wait"
    await begin(running, "sh", "-c", script, before=b"ready\n")
    pidfd = os.pidfd_open(int(told.read_text()))
    async with next_client(running) as client:
        process = await take_one(client)
        await process.kill()
        assert (await process.wait()).exit_code == 128 + signal.SIGKILL
        assert wait_gone(pidfd, limit_s=60)
    os.close(pidfd)


async def test_all_but_programs_ends_with_its_client(start_agent, tmp_path) -> None:
    running = start_agent()
    client = await AgentClient.open(running.sock.dup())
    held = await client.watch(str(tmp_path)), await client.start_exec(Command(["sleep", "600"]))
    client.drop()
    del held
    async with next_client(running) as client:
        await (await take_one(client)).aclose()
        # Neither a program nor a watch is open.
        assert (await client.quiesce())[0].outcome == "ok"


async def test_streams_of_the_next_client_may_have_the_numbers_of_those_that_were_left(start_agent) -> None:
    running = start_agent()
    for _ in range(3):
        await begin(running, "sleep", "600")
        async with next_client(running) as client:
            pass
    async with next_client(running) as client:
        left = await client.list_left()
        assert len({each.number for each in left}) == 3
        processes = [await client.take_left(each) for each in left]
        assert {each.pid for each in processes} == {each.pid for each in left}


async def test_what_was_not_left_cannot_be_taken(start_agent) -> None:
    running = start_agent()
    await begin(running, "sleep", "600")
    async with next_client(running) as client:
        (left,) = await client.list_left()
        process = await client.take_left(left)
        for number in (left.number, left.number + 1, 0):
            with pytest.raises(GuestError, match="no program was left under that number"):
                await client.take_left(left._replace(number=number))
        assert not process.has_ended


async def test_of_a_long_command_line_the_beginning_is_remembered(start_agent) -> None:
    running = start_agent()
    await begin(running, "sh", "-c", "exec sleep 600", *["" for _ in range(1000)], "x" * 1000)
    async with next_client(running) as client:
        (left,) = await client.list_left()
        assert left.argv[:3] == ("sh", "-c", "exec sleep 600")
        assert len(left.argv) < 40
