"""A broker is an owner: its machine ends with it, and it with its machine. All that a guest sends is hostile."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from tests.children import wait_gone
from tests.unit.broker.conftest import LIMIT_S, TOKEN
from tests.unit.host.test_keeper import wait_text
from tests.unit.system_calls import called, check_declared, declared
from vmfork.agent.client import AgentClient
from vmfork.errors import GuestError, PortError, StoreBusy
from vmfork.host import broker as host_broker
from vmfork.host.broker import StartingBroker
from vmfork.host.keeper import KeptProcess
from vmfork.wire.command import Command
from vmfork.wire.frame import (
    BrokerOpcode,
    Channel,
    Kind,
    Opcode,
    encode_data,
    encode_fields,
    encode_frame,
    encode_request,
)

OTHER = b"o" * 16


async def wait_end(brokered) -> None:
    await asyncio.wait_for(brokered.process.wait(), LIMIT_S)


async def ask(client, opcode: BrokerOpcode, *fields: bytes) -> bytes:
    exchange = client._new_exchange()
    return await client._ask(exchange, encode_request(exchange.stream, opcode, *fields), "a broker's answer", LIMIT_S)


async def test_the_machine_ends_with_its_broker(start) -> None:
    brokered = await start()
    os.kill(brokered.pid, signal.SIGKILL)
    await wait_end(brokered)


async def test_the_broker_ends_with_its_machine_and_says_so(start) -> None:
    brokered = await start()
    client = await brokered.client()
    brokered.process.kill()
    assert brokered.why_ended() == "it ended by itself"
    await asyncio.wait_for(client.closed, LIMIT_S)


async def test_a_broker_whose_starter_has_ended_before_it_had_the_machine_ends(tmp_path) -> None:
    broker = await StartingBroker.start(tmp_path, log_fd=2)
    pidfd = os.pidfd_open(broker.pid)
    broker.close()
    assert wait_gone(pidfd, limit_s=LIMIT_S)
    os.close(pidfd)


async def test_it_is_nobodys_child(start) -> None:
    brokered = await start()
    with pytest.raises(ChildProcessError):
        os.waitpid(brokered.pid, os.WNOHANG)


async def test_the_time_to_live_is_kept_while_a_client_is_there(start) -> None:
    brokered = await start(ttl_s=0.3, held=True)
    client = await brokered.client()
    brokered.let_go()
    assert brokered.why_ended() == "its time to live is over"
    await wait_end(brokered)
    await client.aclose()


async def test_it_is_idle_without_a_client_and_not_with_one(start) -> None:
    brokered = await start(idle_ttl_s=0.3, held=True)
    client = await brokered.client()
    brokered.let_go()
    # A client that says nothing is one all the same. That this takes longer than the limit is no matter of the host's.
    assert not wait_gone(brokered.pidfd, limit_s=0.6)
    await client.ping(timeout_s=LIMIT_S)
    await client.aclose()
    assert brokered.why_ended() == "nobody used it for as long as it may be idle"
    await wait_end(brokered)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"ttl_s": 0.2}, "its time to live is over"),
        ({"idle_ttl_s": 0.2}, "nobody used it for as long as it may be idle"),
    ],
)
async def test_its_times_begin_when_its_starter_has_it(start, limits, reason) -> None:
    brokered = await start(held=True, **limits)
    assert not wait_gone(brokered.pidfd, limit_s=0.5)
    brokered.let_go()
    assert brokered.why_ended() == reason


async def test_a_machine_that_nobody_ever_used_is_idle_too(start) -> None:
    brokered = await start(idle_ttl_s=0.2)
    assert brokered.why_ended() == "nobody used it for as long as it may be idle"


async def test_it_is_stopped_at_once_or_after_its_guest_had_time(start) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    await ask(client, BrokerOpcode.END, b"0")
    assert brokered.why_ended() == "it was stopped"
    await wait_end(brokered)


async def test_a_guest_is_told_to_power_off_and_ended_when_it_does_not(start) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    await ask(client, BrokerOpcode.END, b"200")
    stream, _ = await asyncio.wait_for(brokered.peer.request(Opcode.SHUTDOWN), LIMIT_S)
    await brokered.peer.reply(stream)
    assert brokered.why_ended() == "it was stopped"


async def test_it_gives_the_machine_up_for_whoever_knows_the_token(start) -> None:
    brokered = await start()
    client = await brokered.client()
    await client.exec(Command(["true"]), timeout_s=LIMIT_S)
    await ask(client, BrokerOpcode.RELEASE, OTHER)
    assert wait_gone(brokered.pidfd, limit_s=LIMIT_S)
    process, passed = await KeptProcess.take(
        brokered.folder / "keeper.sock", token=OTHER, identity=brokered.process.identity, vm_id="vm"
    )
    process.confirm()
    line, *others = passed
    for fd in others:
        os.close(fd)
    async with await AgentClient.open(socket.socket(fileno=line)) as owner:
        status, _, _ = await owner.exec(Command(["/bin/sh", "-c", "exit 3"]), timeout_s=LIMIT_S)
    assert status.exit_code == 3
    await process.aclose()


async def test_it_keeps_the_machine_while_a_program_of_another_runs(start) -> None:
    brokered = await start()
    one, other = await brokered.client(), await brokered.client()
    running = await other.start_exec(Command(["sleep", "1000"]))
    with pytest.raises(GuestError, match="still runs"):
        await ask(one, BrokerOpcode.RELEASE, OTHER)
    await running.aclose()
    await ask(one, BrokerOpcode.RELEASE, OTHER)
    assert wait_gone(brokered.pidfd, limit_s=LIMIT_S)


async def test_connections_to_ports_do_not_keep_a_machine_from_its_owner(start) -> None:
    brokered = await start()
    one, other = await brokered.client(), await brokered.client()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = await other.open_tunnel(listener.getsockname()[1])
        with listener.accept()[0] as service:
            await ask(one, BrokerOpcode.RELEASE, OTHER)
            with pytest.raises(PortError, match="when the machine gets an owner"):
                await connection.read(timeout_s=LIMIT_S)
            with pytest.raises(ConnectionResetError):
                service.recv(1)
    assert wait_gone(brokered.pidfd, limit_s=LIMIT_S)


async def test_nobody_takes_a_machine_that_a_broker_owns(start) -> None:
    brokered = await start()
    with pytest.raises(StoreBusy):
        await KeptProcess.take(
            brokered.folder / "keeper.sock", token=TOKEN, identity=brokered.process.identity, vm_id="vm"
        )


async def test_the_console_is_kept_and_stays_small(start) -> None:
    brokered = await start()
    loop = asyncio.get_running_loop()
    brokered.guest.setblocking(False)
    for number in range(40):
        await asyncio.wait_for(loop.sock_sendall(brokered.guest, b"%07d\n" % number * 1000), LIMIT_S)
    await asyncio.wait_for(loop.sock_sendall(brokered.guest, b"the end\n"), LIMIT_S)
    brokered.process.kill()
    brokered.why_ended()
    kept = (brokered.folder / "console.log").read_bytes()
    assert 64_000 < len(kept) <= 131_072 + 8192
    assert kept.endswith(b"0000039\nthe end\n")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x01", "its guest sent bytes that are no frame"),
        (encode_request(1, Opcode.PING), "its guest sent a frame that only a host sends"),
        (encode_frame(Kind.ERROR, 1, encode_fields(b"one")), "its guest sent an error that is not three fields"),
        (encode_frame(Kind.CREDIT, 1, b"\x01"), "its guest sent credit that cannot be read"),
        (encode_data(1, Channel.ARGUMENTS, b"x"), "its guest sent data on a channel that has none"),
        (encode_frame(Kind.EOF, 1, b""), "its guest sent the end of a channel that has none"),
        (
            encode_frame(Kind.ERROR, 0, encode_fields(b"protocol", b"lost", b"0")),
            "its guest sent word that its agent lost its place on the line",
        ),
    ],
    ids=["bytes", "request", "error", "credit", "channel", "eof", "lost"],
)
async def test_a_guest_that_breaks_the_protocol_is_ended_and_the_log_says_how(start, sent, reason) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    await brokered.peer.send(sent)
    assert brokered.why_ended() == reason
    await wait_end(brokered)
    assert f"{reason}; the machine is ended" in (brokered.folder / "qemu.log").read_text()
    await client.aclose()


async def test_a_guest_that_sends_beyond_its_credit_is_ended(start) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    running = asyncio.ensure_future(client.start_exec(Command(["yes"]), timeout_s=LIMIT_S))
    stream, _ = await asyncio.wait_for(brokered.peer.request(Opcode.EXEC), LIMIT_S)
    await brokered.peer.send(encode_frame(Kind.EVENT, stream, encode_fields(b"started", b"7")))
    await running
    for _ in range(2):
        await brokered.peer.send(encode_data(stream, Channel.STDERR, bytes(40_000)))
    assert brokered.why_ended() == "its guest sent data beyond its credit"
    await client.aclose()


async def test_a_guest_that_halts_is_ended_and_one_that_only_says_so_is_not(start) -> None:
    brokered = await start(agent=False)
    brokered.guest.send(b"reboot: SystemSystem hal")
    brokered.guest.send(b"ted\n")
    stream, _ = await asyncio.wait_for(brokered.peer.request(Opcode.PING), LIMIT_S)
    await brokered.peer.reply(stream)
    brokered.guest.send(b"Power off not available: System halted instead\n")
    await asyncio.wait_for(brokered.peer.request(Opcode.PING), LIMIT_S)
    assert brokered.why_ended() == "its guest halted"
    await wait_end(brokered)


async def test_a_guest_that_speaks_of_halting_and_is_paused_is_not_taken_for_halted(start) -> None:
    brokered = await start(agent=False, ttl_s=8)
    (brokered.folder / "paused").touch()
    brokered.guest.send(b"reboot: System halted\n")
    await asyncio.wait_for(brokered.peer.request(Opcode.PING), LIMIT_S)
    assert brokered.why_ended() == "its time to live is over"
    await wait_end(brokered)


@pytest.mark.needs("strace")
async def test_it_makes_the_system_calls_its_readme_declares(shipped, start, tmp_path, monkeypatch) -> None:
    trace, traced = tmp_path / "trace", tmp_path / "traced"
    traced.write_text(f'#!/bin/sh\nexec strace -D -f -o {trace} {host_broker.find_broker()} "$@"\n')
    traced.chmod(0o755)
    monkeypatch.setattr(host_broker, "find_broker", lambda: traced)
    brokered = await start()
    client = await brokered.client()
    brokered.guest.setblocking(False)
    for _ in range(64):
        await asyncio.get_running_loop().sock_sendall(brokered.guest, bytes(8192))
    content = bytes(600_000)
    _, stdout, _ = await client.exec(Command(["cat"]), input=content, timeout_s=LIMIT_S)
    assert stdout == content
    await ask(client, BrokerOpcode.END, b"0")
    brokered.why_ended()
    wait_text(trace, "+++ exited with 0 +++")
    check_declared(called(trace), declared("broker")["at work"], {"execve"})


async def test_a_guest_that_answers_what_nobody_asked_is_ignored(start) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    await brokered.peer.reply(99, b"to nobody")
    await brokered.peer.send(encode_data(99, Channel.STDOUT, b"to nobody"))
    ping = asyncio.ensure_future(client.ping(timeout_s=LIMIT_S))
    stream, _ = await asyncio.wait_for(brokered.peer.request(Opcode.PING), LIMIT_S)
    await brokered.peer.reply(stream)
    await ping
    await client.aclose()
