"""Programs in the background outlive their client, keep the end of what they wrote, and are found by any client."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.children import wait_gone
from tests.unit.broker.test_clients import HELLO, is_gone, sh
from tests.unit.broker.test_machine import ask
from vmfork.errors import GuestError
from vmfork.wire.command import Command
from vmfork.wire.frame import (
    BrokerOpcode,
    Channel,
    Kind,
    Opcode,
    decode_fields,
    encode_data,
    encode_fields,
    encode_frame,
    encode_request,
)
from vmfork.wire.message import parse_exec, parse_started

ROOM = b"65536"


async def begin(client, number: int, script: str) -> int:
    """The pid of what runs then."""
    command = (b"", b"/", b"", b"3", b"sh", b"-c", script.encode())
    return parse_started(await ask(client, BrokerOpcode.BACKGROUND, b"%d" % number, *command))


async def read(client, number: int, out: int = 0, err: int = 0):
    """Where the pieces begin, the pieces, and the end, which is empty while the program runs."""
    fields = decode_fields(await ask(client, BrokerOpcode.OUTPUT, *(b"%d" % each for each in (number, out, err))))
    return int(fields[0]), fields[1], int(fields[2]), fields[3], fields[4]


async def read_to_end(client, number: int):
    out, err, end = b"", b"", b""
    while not end:
        _, more_out, _, more_err, end = await read(client, number, len(out), len(err))
        out, err = out + more_out, err + more_err
    return out, err, parse_exec(end)


async def test_it_runs_on_when_its_client_has_left_and_another_reads_it(start) -> None:
    brokered = await start()
    starter = await brokered.client()
    fifo = brokered.folder / "fifo"
    await begin(starter, 1, f"echo first; echo error >&2; mkfifo {fifo}; read line < {fifo}; echo $line; exit 7")
    await starter.aclose()
    client = await brokered.client()
    assert (await read(client, 1))[1] == b"first\n"
    status, _, _ = await client.exec(sh(f"while [ ! -p {fifo} ]; do sleep 0.01; done; echo last > {fifo}"))
    assert status.exit_code == 0
    out, err, end = await read_to_end(client, 1)
    assert (out, err, end.exit_code) == (b"first\nlast\n", b"error\n", 7)
    assert (brokered.folder / "programs" / "1.out").read_bytes() == out
    assert parse_exec((brokered.folder / "programs" / "1.end").read_bytes()).exit_code == 7
    await client.aclose()


async def test_what_was_left_in_the_guest_is_kept_like_any_other(start, tmp_path) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    keeping = asyncio.create_task(ask(client, BrokerOpcode.KEEP, b"3", b"17"))
    stream, fields = await brokered.peer.request(Opcode.TAKE)
    assert fields == (b"17",)
    await brokered.peer.send(encode_frame(Kind.EVENT, stream, encode_fields(b"started", b"4321")))
    assert parse_started(await keeping) == 4321
    await brokered.peer.send(encode_data(stream, Channel.STDOUT, b"since then\n"))
    await brokered.peer.reply(stream, b"exit", b"7", b"1", b"1", b"1", b"")
    out, err, end = await read_to_end(client, 3)
    assert (out, err, end.exit_code) == (b"since then\n", b"", 7)
    await client.aclose()


@pytest.mark.parametrize(
    ("fields", "why"),
    [((b"0", b"1"), "invalid"), ((b"1",), "invalid"), ((b"1", b"1", b"1"), "invalid"), ((b"x", b"1"), "invalid")],
)
async def test_what_makes_no_sense_keeps_nothing(start, fields, why) -> None:
    client = await (await start(agent=False)).client()
    with pytest.raises(GuestError, match=why):
        await ask(client, BrokerOpcode.KEEP, *fields)
    await client.aclose()


async def test_what_was_not_left_is_not_kept(start) -> None:
    brokered = await start()
    client = await brokered.client()
    with pytest.raises(GuestError, match="no program was left under that number"):
        await ask(client, BrokerOpcode.KEEP, b"1", b"99")
    await begin(client, 1, "exit 0")
    await client.aclose()


async def test_of_much_output_the_end_is_kept(start) -> None:
    brokered = await start()
    client = await brokered.client()
    await begin(client, 1, "seq 1 500000")
    out, place = b"", 1 << 40
    end = b""
    while not end:
        _, _, _, _, end = await read(client, 1, place)
    first, out, _, _, _ = await read(client, 1)
    assert first > 3_000_000
    while more := (await read(client, 1, first + len(out)))[1]:
        out += more
    assert out.endswith(b"499999\n500000\n")
    assert len(out) >= 65536
    assert (brokered.folder / "programs" / "1.out").stat().st_size <= 131072
    await client.aclose()


async def test_whoever_waits_is_told_when_there_is_something(start) -> None:
    brokered = await start()
    one, other = await brokered.client(), await brokered.client()
    await begin(one, 1, "sleep 1000")
    waiting = [asyncio.ensure_future(read(client, 1)) for client in (one, other)]
    console = asyncio.ensure_future(read(other, 0))
    brokered.guest.send(b"on the console\n")
    assert (await console)[1] == b"on the console\n"
    await ask(other, BrokerOpcode.SIGNAL, b"1", b"%d" % signal.SIGTERM)
    for told in waiting:
        status = parse_exec((await told)[4])
        assert (status.kind, status.number) == ("signal", signal.SIGTERM)
    with pytest.raises(GuestError, match="no program of that number runs"):
        await ask(other, BrokerOpcode.SIGNAL, b"1", b"15")
    await one.aclose()
    await other.aclose()


async def test_what_cannot_be_started_is_told_and_leaves_its_number_free(start) -> None:
    brokered = await start()
    client = await brokered.client()
    command = b"", b"/", b"", b"1", b"no-such-program"
    with pytest.raises(GuestError, match="not-found"):
        await ask(client, BrokerOpcode.BACKGROUND, b"1", *command)
    with pytest.raises(GuestError, match="no program has that number"):
        await read(client, 1)
    await begin(client, 1, "exit 0")
    with pytest.raises(GuestError, match="exists"):
        await begin(client, 1, "exit 0")
    for wrong in ((b"0", *command), (b"x", *command), (b"1",), ()):
        with pytest.raises(GuestError, match="invalid"):
            await ask(client, BrokerOpcode.BACKGROUND, *wrong)
    with pytest.raises(GuestError, match="too-long"):
        await ask(client, BrokerOpcode.BACKGROUND, b"2", b"stdin,arguments", b"/", b"", b"1", b"true")
    await client.aclose()


async def test_a_program_that_runs_keeps_the_machine_from_being_idle_or_given_up(start) -> None:
    brokered = await start(idle_ttl_s=0.2, held=True)
    client = await brokered.client()
    brokered.let_go()
    await begin(client, 1, "sleep 1000")
    with pytest.raises(GuestError, match="still runs"):
        await ask(client, BrokerOpcode.RELEASE, b"t" * 16)
    await client.aclose()
    assert not wait_gone(brokered.pidfd, limit_s=0.5)
    client = await brokered.client()
    await ask(client, BrokerOpcode.SIGNAL, b"1", b"9")
    await client.aclose()
    assert brokered.why_ended() == "nobody used it for as long as it may be idle"
    assert (brokered.folder / "programs" / "1.end").exists()


async def test_the_oldest_that_has_ended_makes_room(start) -> None:
    brokered = await start()
    client = await brokered.client()
    await begin(client, 1, "sleep 1000")
    for number in range(2, 66):
        await begin(client, number, "echo $$")
        await read_to_end(client, number)
    with pytest.raises(GuestError, match="no program has that number"):
        await read(client, 2)
    assert not (brokered.folder / "programs" / "2.out").exists()
    assert (await read(client, 3))[4] != b""
    await ask(client, BrokerOpcode.SIGNAL, b"1", b"9")
    await read_to_end(client, 1)
    await client.aclose()


async def test_it_ends_with_the_machine(start) -> None:
    brokered = await start()
    client = await brokered.client()
    pid = await begin(client, 1, "sleep 1000")
    await ask(client, BrokerOpcode.END, b"0")
    assert await is_gone(pid)


async def test_one_who_waits_no_longer_takes_no_place(start) -> None:
    brokered = await start()
    client = await brokered.client()
    await begin(client, 1, "sleep 1000")
    for _ in range(300):
        given_up = asyncio.ensure_future(client.read_kept(1, 0, 0))
        await client.ping()
        given_up.cancel()
    waiting = asyncio.ensure_future(client.read_kept(1, 0, 0))
    await client.signal_kept(1, signal.SIGKILL)
    assert (await waiting).end.number == signal.SIGKILL
    await client.aclose()


async def test_a_start_that_is_given_up_leaves_nothing_that_runs(start) -> None:
    brokered = await start(agent=False)
    client = await brokered.client()
    starting = asyncio.ensure_future(client.start_background(1, Command(["sleep", "1000"]), timeout_s=None))
    asked = await brokered.peer.frame()
    starting.cancel()
    killed = await brokered.peer.frame()
    assert (killed.kind, killed.payload[0]) == (Kind.REQUEST, Opcode.KILL)
    assert decode_fields(killed.payload[1:]) == (b"%d" % asked.stream, b"%d" % signal.SIGKILL)
    await client.aclose()


async def test_one_who_asks_for_much_and_reads_nothing_costs_a_bounded_amount(shipped, start) -> None:
    brokered = await start()
    client = await brokered.client()
    await begin(client, 1, "seq 100000")
    await read_to_end(client, 1)
    with brokered.connect() as deaf:
        deaf.send(HELLO + b"".join(encode_request(2, BrokerOpcode.OUTPUT, b"1", b"0", b"0") for _ in range(2000)))
        await client.ping()
        await client.ping()
    status = Path(f"/proc/{brokered.pid}/status").read_text()
    assert int(status.partition("VmHWM:")[2].split()[0]) < 64 * 1024
    await client.aclose()
