"""What a program writes, as it comes: events, listeners, text; and its end at a time limit."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.timing import held_time
from tests.unit.guest.test_exec import gone
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, GuestError
from vmfork.machine.decoding import Decoding, find_decoding
from vmfork.machine.programs import run_program, stream_program
from vmfork.wire.command import Command
from vmfork.wire.frame import Channel

LARGE = 200_000_000


@pytest.fixture
def running(agent):
    """As much of a machine as a program needs."""
    return SimpleNamespace(agent=agent)


def sh(script: str) -> Command:
    return Command(["sh", "-c", script])


async def test_events_come_in_the_order_of_each_stream_and_the_end_is_the_last(running) -> None:
    events = [event async for event in stream_program(running, sh("echo 1; echo 2 >&2; echo 3; exit 4"))]
    assert b"".join(event.data for event in events if event.kind == "stdout") == b"1\n3\n"
    assert b"".join(event.data for event in events if event.kind == "stderr") == b"2\n"
    assert [event.kind for event in events].count("end") == 1
    end = events[-1]
    assert (end.kind, end.data, end.result.exit_code, end.result.stdout) == ("end", b"", 4, "")
    assert {event.text for event in events} == {""}


async def test_an_event_comes_while_the_program_runs(running) -> None:
    async with aclosing(stream_program(running, sh("echo up; exec sleep 60"))) as events:
        assert (await anext(events)).data == b"up\n"
    async with aclosing(stream_program(running, sh("echo $$; exec sleep 60"))) as events:
        pid = int((await anext(events)).data)
    gone(pid)


async def test_a_character_that_is_cut_comes_whole(running) -> None:
    script = r"printf '\303'; sleep 0.1; printf '\244\n'; printf '\303' >&2; printf '\377'"
    events = [event async for event in stream_program(running, sh(script), decoding=Decoding())]
    texts = {kind: "".join(event.text for event in events if event.kind == kind) for kind in ("stdout", "stderr")}
    assert texts == {"stdout": "ä\n\ufffd", "stderr": "\ufffd"}
    assert sorted(b"".join(event.data for event in events)) == sorted(b"\303\244\n\303\377")
    told: list[str] = []
    await run_program(running, sh(script), listeners={Channel.STDOUT: told.append}, decoding=Decoding("latin-1"))
    assert "".join(told) == "Ã¤\nÿ"


async def test_bytes_that_are_no_text_are_an_error_only_where_that_was_asked_for(running) -> None:
    command = sh(r"printf 'a\377'; printf fine >&2; exit 3")
    assert (await run_program(running, command)).stdout == "a\ufffd"
    with pytest.raises(ExecError, match="what it wrote is not utf-8") as told:
        await run_program(running, command, decoding=find_decoding("utf-8", None))
    assert (told.value.stdout, told.value.stderr, told.value.exit_code) == (b"a\377", b"fine", 3)
    with pytest.raises(GuestError, match="standard output is not utf-8"):
        await run_program(running, command, listeners={Channel.STDOUT: len}, decoding=find_decoding(None, "strict"))
    with pytest.raises(GuestError, match="standard output is not ascii"):
        [event async for event in stream_program(running, command, decoding=find_decoding("ascii", None))]
    assert (await run_program(running, command, decoding=Decoding("utf-8", "backslashreplace"))).stdout == "a\\xff"


@pytest.mark.parametrize(
    ("encoding", "errors", "field"),
    [
        ("no-such", None, "encoding"), ("", None, "encoding"), ("hex", None, "encoding"), ("a\0b", None, "encoding"),
        (None, "no-such", "errors"), ("utf-8", "xmlcharrefreplace", "errors"), (None, "a\0b", "errors"),
    ],
)  # fmt: skip
def test_an_encoding_that_is_none_is_refused_by_name(encoding, errors, field) -> None:
    with pytest.raises(ConfigError) as refused:
        find_decoding(encoding, errors)
    assert refused.value.field == field


async def test_a_listener_is_told_and_the_rest_is_kept(running) -> None:
    told: list[bytes] = []
    script = "echo to the listener; echo kept >&2; exit 5"
    result = await run_program(running, sh(script), listeners={Channel.STDOUT: told.append})
    assert (b"".join(told), result.stdout, result.stderr, result.exit_code) == (b"to the listener\n", "", "kept\n", 5)


async def test_what_a_listener_raises_ends_the_program_and_is_raised(running) -> None:
    def refuse(data: bytes) -> None:
        raise RuntimeError(data.decode())

    with pytest.raises(RuntimeError) as refused:
        await run_program(running, sh("echo $$; exec sleep 60"), listeners={Channel.STDOUT: refuse})
    gone(int(str(refused.value)))
    assert (await run_program(running, sh("echo and on"))).stdout == "and on\n"


@pytest.mark.parametrize("way", ["events", "listener"])
async def test_200_mb_pass_and_neither_side_grows(running, way: str) -> None:
    command = sh(f"head -c {LARGE} /dev/zero | tr '\\0' x")
    digest, count = hashlib.sha256(), 0

    def take(data: bytes) -> None:
        nonlocal count
        digest.update(data)
        count += len(data)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "events":
        async for event in stream_program(running, command):
            take(event.data)
    else:
        await run_program(running, command, listeners={Channel.STDOUT: take})
    expected = hashlib.sha256()
    for _ in range(LARGE // 1_000_000):
        expected.update(b"x" * 1_000_000)
    assert (count, digest.digest()) == (LARGE, expected.digest())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


async def test_a_hundred_streams_at_once(running) -> None:
    async def read(number: int) -> bytes:
        return b"".join([event.data async for event in stream_program(running, sh(f"echo {number}; seq 1000 >&2"))])

    numbers = "".join(f"{each}\n" for each in range(1, 1001)).encode()
    for number, data in enumerate(await asyncio.gather(*(read(number) for number in range(100)))):
        assert sorted(data.split()) == sorted([*numbers.split(), b"%d" % number])


POLITE = "trap 'echo asked; exit 0' TERM; echo up; echo > {up}; while :; do sleep 0.02; done"
DEAF = "trap '' TERM; echo $$; echo up; echo > {up}; (trap '' TERM; exec sleep 60) & wait; sleep 60"


async def run(running, way: str, script: str) -> tuple[DeadlineExceeded, bytes]:
    """The error at its limit of 5 s and a grace of 50, and what was written until then."""
    came, limits = b"", {"timeout_s": 5.0, "grace_s": 50.0}
    with pytest.raises(DeadlineExceeded) as late:
        if way == "exec":
            await run_program(running, sh(script), **limits)
        else:
            async for event in stream_program(running, sh(script), **limits):
                came += event.data if event.kind == "stdout" else b""
    return late.value, came or late.value.stdout


@pytest.fixture
def up(tmp_path) -> Path:
    """A pipe that a program writes to once it is up."""
    os.mkfifo(tmp_path / "up")
    return tmp_path / "up"


async def wait_up(running, up: Path) -> None:
    """The program is up, and its limit of time has begun."""
    await asyncio.to_thread(up.read_bytes)
    await has_turns(running)


async def has_turns(running) -> None:
    """Whoever waits in this loop had turns, behind whatever the agent has told."""
    for _ in range(3):
        await running.agent.ping()


@pytest.mark.parametrize("way", ["exec", "stream"])
async def test_a_program_may_end_in_order_in_its_grace(running, up, way: str) -> None:
    with held_time() as time:
        ending = asyncio.ensure_future(run(running, way, POLITE.format(up=up)))
        await wait_up(running, up)
        time.pass_by(5.0)
        late, came = await ending  # though its grace never passes
    assert (late.limit_s, came) == (5.0, b"up\nasked\n")


@pytest.mark.parametrize("way", ["exec", "stream"])
async def test_a_program_that_ignores_term_is_killed_after_its_grace(running, up, way: str) -> None:
    with held_time() as time:
        ending = asyncio.ensure_future(run(running, way, DEAF.format(up=up)))
        await wait_up(running, up)
        time.pass_by(5.0)
        await has_turns(running)  # in which SIGTERM is sent
        assert not ending.done()
        time.pass_by(50.0)
        late, came = await ending
    pid, said = came.split()
    assert (late.limit_s, said) == (5.0, b"up")
    gone(int(pid))


async def test_a_time_limit_reaches_a_program_that_nobody_reads(running) -> None:
    with held_time() as time:
        async with aclosing(stream_program(running, sh("echo $$; exec yes"), timeout_s=5.0)) as events:
            pid = int((await anext(events)).data.split()[0])
            await has_turns(running)
            time.pass_by(5.0)
            await asyncio.to_thread(gone, pid)
            with pytest.raises(DeadlineExceeded):
                async for _ in events:
                    pass


@pytest.mark.parametrize("way", ["exec", "stream"])
async def test_a_grace_needs_a_limit_that_it_follows(running, way: str) -> None:
    with pytest.raises(ConfigError, match="grace_s"):
        if way == "exec":
            await run_program(running, sh("true"), grace_s=1.0)
        else:
            [event async for event in stream_program(running, sh("true"), grace_s=1.0)]
