"""Adopting an identity: every item is answered, with evidence from where it took effect."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vmfork.agent.client import AgentClient
from vmfork.errors import GuestError
from vmfork.wire.command import Command
from vmfork.wire.frame import PROTOCOL
from vmfork.wire.message import ItemOutcome, adopt_request, parse_outcomes

as_root = pytest.mark.needs("root")

GENERATION = b"0123456789abcdef" * 2


def host_identity() -> tuple[str, str]:
    return socket.gethostname(), Path("/proc/sys/kernel/random/boot_id").read_text()


async def outcome(agent, key: str, value: bytes) -> ItemOutcome:
    (only,) = await agent.adopt([(key, value)])
    return only


async def test_items_land_in_their_files_and_are_read_back_from_there(agent, root_dir: Path) -> None:
    (root_dir / "etc" / "machine-id").write_text("the template's")
    items = [("generation", GENERATION), ("fork-id", b"f-1"), ("machine-id", b"a" * 32), ("template", b"py")]
    assert await agent.adopt(items) == tuple(ItemOutcome(key, "ok", value) for key, value in items)
    run = root_dir / "run" / "vmfork"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == {
        "generation": GENERATION + b"\n",
        "fork-id": b"f-1\n",
        "template": b"py\n",
    }
    assert (root_dir / "etc" / "machine-id").read_bytes() == b"a" * 32 + b"\n"
    assert os.listdir(root_dir / "etc") == ["machine-id"]


async def test_the_id_of_a_machine_is_written_where_the_one_before_was(agent, root_dir: Path) -> None:
    """As in each fork of a template: to make and rename a file costs it more, most of all on a root on a disk."""
    path = root_dir / "etc" / "machine-id"
    await outcome(agent, "machine-id", b"a" * 32)
    before = path.stat().st_ino
    assert await outcome(agent, "machine-id", b"f" * 32) == ItemOutcome("machine-id", "ok", b"f" * 32)
    assert (path.stat().st_ino, path.read_bytes()) == (before, b"f" * 32 + b"\n")
    assert os.listdir(path.parent) == ["machine-id"]


@pytest.mark.parametrize("key", ["generation", "fork-id", "template"])
async def test_what_programs_watch_is_replaced_by_rename(agent, root_dir: Path, key) -> None:
    """So that one event tells them of their fork; what is read is whole, and who reads the old goes on with it."""
    path = root_dir / "run" / "vmfork" / key
    await outcome(agent, key, b"a" * 32)
    with path.open("rb") as old:
        await outcome(agent, key, b"f" * 32)
        assert old.read() == b"a" * 32 + b"\n"
    assert path.read_bytes() == b"f" * 32 + b"\n"


def link(path: Path, other: Path) -> None:
    other.write_bytes(b"b" * 32 + b"\n")
    other.chmod(0o444)
    path.hardlink_to(other)


def point(path: Path, other: Path) -> None:
    link(path, other)
    path.unlink()
    path.symlink_to(other)


def loosen(path: Path, other: Path) -> None:
    link(path, other)
    other.unlink()
    path.chmod(0o644)


def lengthen(path: Path, other: Path) -> None:
    loosen(path, other)
    path.write_bytes(b"b" * 64)
    path.chmod(0o444)


def pipe(path: Path, other: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [link, point, loosen, lengthen, pipe])
async def test_what_is_not_the_line_before_is_replaced(agent, root_dir: Path, tmp_path: Path, make) -> None:
    path, other = root_dir / "etc" / "machine-id", tmp_path / "other"
    make(path, other)
    assert await outcome(agent, "machine-id", b"a" * 32) == ItemOutcome("machine-id", "ok", b"a" * 32)
    assert not path.is_symlink()
    assert (path.read_bytes(), path.stat().st_mode & 0o7777, path.stat().st_nlink) == (b"a" * 32 + b"\n", 0o444, 1)
    assert not other.exists() or other.read_bytes() == b"b" * 32 + b"\n"


async def test_variables_reach_later_programs(agent) -> None:
    outcomes = await agent.adopt([("env", b"A=1"), ("env", b"B=x=y"), ("env", b"A=2")])
    assert outcomes == (ItemOutcome("env", "ok", b"A"), ItemOutcome("env", "ok", b"B"), ItemOutcome("env", "ok", b"A"))
    _, stdout, _ = await agent.exec(Command(["sh", "-c", 'echo "$A $B"']), timeout_s=20)
    assert stdout == b"2 x=y\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [("entropy", b"e" * 64), ("hostname", b"fork"), ("boot-id", b"9f43c15e-ec58-44aa-bd80-17a1c159becc")],
)
async def test_the_host_of_a_test_is_left_alone(agent, key: str, value: bytes) -> None:
    before = host_identity()
    assert await outcome(agent, key, value) == ItemOutcome(key, "unsupported", b"")
    assert host_identity() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", b"short"),
        ("generation", b"G" * 32),
        ("machine-id", b"A" * 32),
        ("fork-id", b""),
        ("fork-id", b"two\nlines"),
        ("template", b"t" * 256),
        ("env", b"no equals sign"),
        ("env", b"=value"),
        ("env", b"A=zero\0byte"),
        ("unset-env", b"no equals sign"),
        ("unset-env", b"=value"),
    ],
)
async def test_a_value_that_makes_no_sense_is_invalid(agent, root_dir: Path, key: str, value: bytes) -> None:
    assert await outcome(agent, key, value) == ItemOutcome(key, "invalid", b"")
    assert not (root_dir / "run").exists()


async def test_a_variable_goes_where_it_has_the_value_that_is_named(agent) -> None:
    await agent.adopt([("env", b"GOES=a=b"), ("env", b"STAYS=mine"), ("env", b"AGAIN=old")])
    items = [("unset-env", b"GOES=a=b"), ("unset-env", b"STAYS=theirs"), ("unset-env", b"NEVER=was")]
    again = [("unset-env", b"AGAIN=old"), ("env", b"AGAIN=new")]
    outcomes = await agent.adopt([*items, *again])
    assert [(each.outcome, each.evidence) for each in outcomes] == [
        ("ok", b"GOES"), ("ok", b"STAYS"), ("ok", b"NEVER"), ("ok", b"AGAIN"), ("ok", b"AGAIN"),
    ]  # fmt: skip
    _, stdout, _ = await agent.exec(Command(["env"]))
    found = dict(line.split(b"=", 1) for line in stdout.splitlines())
    assert (found[b"STAYS"], found[b"AGAIN"], b"GOES" in found) == (b"mine", b"new", False)


async def test_an_item_nobody_knows_is_unsupported(agent) -> None:
    assert await outcome(agent, "colour", b"red") == ItemOutcome("colour", "unsupported", b"")


async def test_one_failed_item_does_not_stop_the_others(agent, root_dir: Path) -> None:
    (root_dir / "etc" / "machine-id").mkdir()
    outcomes = await agent.adopt([("machine-id", b"a" * 32), ("fork-id", b"f")])
    assert outcomes == (ItemOutcome("machine-id", "is-directory", b""), ItemOutcome("fork-id", "ok", b"f"))


async def test_a_key_that_comes_twice_changes_nothing(agent, root_dir: Path) -> None:
    with pytest.raises(GuestError, match="invalid"):
        await agent.adopt([("fork-id", b"a"), ("fork-id", b"b")])
    assert not (root_dir / "run").exists()


async def test_the_clock_is_read_and_not_set(agent) -> None:
    reading = await agent.clock()
    assert reading.sent_ns <= reading.wall_ns <= reading.received_ns
    with pytest.raises(GuestError, match="unsupported"):
        await agent.clock(lambda: 0)


@pytest.fixture
async def naming_agent(start_mounting, root_dir: Path):
    """An agent that may change the host name, which is its own."""
    running = start_mounting("true", "--privileged", "--root", str(root_dir))
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        yield client


HOSTS = "# ours\n127.0.0.1\tlocalhost\n10.0.0.1 database\n127.0.1.1 vmfork-other\n"


@as_root
@pytest.mark.parametrize(
    ("hostname", "hosts", "said"),
    [
        (None, None, "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tfork\n"),
        ("old\n", HOSTS, f"{HOSTS}127.0.1.1\tfork\n"),
        ("old\n", "127.0.1.1 old\n" + HOSTS, f"127.0.1.1\tfork\n{HOSTS}"),
        ("old\n", HOSTS + "  127.0.1.1\told alias # of the template\n127.0.1.1 old", f"{HOSTS}127.0.1.1\tfork\n"),
        ("old\n", "127.0.1.1 older\n127.0.1.10 old", "127.0.1.1 older\n127.0.1.10 old\n127.0.1.1\tfork\n"),
        ("old\n", "192.168.0.1 old\n", "192.168.0.1 old\n127.0.1.1\tfork\n"),
    ],
    ids=["nothing there", "none of ours", "ours", "ours twice", "other names", "another address"],
)
async def test_the_name_leads_back_to_the_machine(naming_agent, root_dir: Path, hostname, hosts, said) -> None:
    for name, text in (("hostname", hostname), ("hosts", hosts)):
        if text is not None:
            (root_dir / "etc" / name).write_text(text)
    assert await outcome(naming_agent, "hostname", b"fork") == ItemOutcome("hostname", "ok", b"fork")
    assert (root_dir / "etc" / "hosts").read_text() == said
    assert (root_dir / "etc" / "hostname").read_text() == "fork\n"
    # Again, as in a fork of the fork: the line is renamed, and none is added.
    assert (await outcome(naming_agent, "hostname", b"fork-of-it")).outcome == "ok"
    assert (root_dir / "etc" / "hosts").read_text() == said.replace("127.0.1.1\tfork\n", "127.0.1.1\tfork-of-it\n")


@as_root
async def test_a_name_that_cannot_be_written_is_the_machines_all_the_same(start_mounting, root_dir: Path) -> None:
    (root_dir / "etc" / "hosts").mkdir()
    running = start_mounting("true", "--privileged", "--root", str(root_dir))
    running.says = "vmfork-agent: cannot write /etc/hosts: Is a directory\n"
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        assert (await outcome(client, "hostname", b"fork")).outcome == "ok"
    assert (root_dir / "etc" / "hostname").read_text() == "fork\n"


async def test_the_agent_tells_its_protocol(agent) -> None:
    assert await agent.adopt([("fork-id", b"f")]) == (ItemOutcome("fork-id", "ok", b"f"),)
    exchange = agent._new_exchange()
    agent._begin(exchange, adopt_request(exchange.stream, [("protocol", b"1")]))
    assert parse_outcomes(await exchange.reply) == (ItemOutcome("protocol", "ok", b"%d" % PROTOCOL),)
