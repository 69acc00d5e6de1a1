"""NOTIFY: every watcher is told of the generation, each answers for itself, and nobody holds the agent up."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import with_more_time
from vmfork.agent.client import AgentClient
from vmfork.errors import DeadlineExceeded, GuestError
from vmfork.wire.frame import (
    TAKE_OVER_PREAMBLE,
    Channel,
    Frame,
    FrameParser,
    Kind,
    Opcode,
    decode_fields,
    encode_credit,
    encode_data,
    encode_eof,
    encode_fields,
    encode_frame,
    encode_request,
)
from vmfork.wire.message import ItemOutcome, hello_request, notify_request, parse_outcomes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GENERATION = b"0123456789abcdef" * 2
OTHER_GENERATION = b"f" * 32
# Long enough for every watcher that answers, and never waited for to the end by a test that passes.
PLENTY_S = 60.0
# Waited for to the end wherever somebody is silent.
SHORT_S = 0.2
# The same, where something has to be done before it is over: the second where a busy host did not do it in the first.
ENOUGH_S = (0.4, 10.0)
LIMIT_S = 30
NOBODY = 65534
MOST_WATCHERS = 256
EVIDENCE_LIMIT = 511


@pytest.fixture
def watchers_dir(root_dir: Path) -> Path:
    """As the agent of a guest makes it."""
    return make_watchers_dir(root_dir)


def make_watchers_dir(root: Path) -> Path:
    path = root / "run" / "vmfork" / "watchers"
    path.mkdir(parents=True)
    path.chmod(0o1777)
    (root / "run" / "vmfork" / "generation").write_bytes(GENERATION + b"\n")
    return path


class Watcher:
    """A program's socket in the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / name
        self.path.unlink(missing_ok=True)  # of an earlier attempt
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(self.path))
        self.sock.settimeout(LIMIT_S)

    def receive(self) -> tuple[bytes, bytes]:
        """What it was told, and where the answer goes."""
        return self.sock.recvfrom(4096)

    def answer(self, answer: bytes) -> bytes:
        told, sender = self.receive()
        self.sock.sendto(answer, sender)
        return told


@pytest.fixture
def watch(watchers_dir: Path) -> Iterator[Callable[[str], Watcher]]:
    with ExitStack() as stack:

        def start(name: str) -> Watcher:
            watcher = Watcher(watchers_dir, name)
            stack.callback(watcher.sock.close)
            return watcher

        yield start


async def in_thread(work: Callable[..., object], *args: object) -> None:
    await asyncio.to_thread(work, *args)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_without_watchers_nothing_is_waited_for(agent, watchers_dir: Path) -> None:
    assert await agent.notify(PLENTY_S) == []
    watchers_dir.rmdir()
    assert await agent.notify(PLENTY_S) == []


async def test_without_a_generation_nobody_is_told(agent) -> None:
    with pytest.raises(GuestError, match="not-found"):
        await agent.notify(PLENTY_S)


async def test_each_watcher_is_told_and_answers_for_itself(agent, watch) -> None:
    first, second = watch("17"), watch("18.pool")
    await agent.adopt([("generation", OTHER_GENERATION)])
    notified = asyncio.ensure_future(agent.notify(PLENTY_S))
    assert await asyncio.to_thread(second.answer, b"ok " + OTHER_GENERATION) == OTHER_GENERATION
    await agent.ping()
    assert not notified.done()
    await in_thread(first.answer, b"error the pool is gone")
    assert sorted(await notified, key=lambda item: item.item) == [
        ItemOutcome("17", "failed", b"the pool is gone"),
        ItemOutcome("18.pool", "ok", OTHER_GENERATION),
    ]


async def test_the_silent_are_named_when_the_limit_is_over(agent, watch) -> None:
    async def tell(limit_s: float) -> None:
        silent, talking = watch("1"), watch("2")
        start = time.monotonic()
        notified = asyncio.ensure_future(agent.notify(limit_s))
        await in_thread(talking.answer, b"ok " + GENERATION)
        assert sorted(await notified, key=lambda item: item.item) == [
            ItemOutcome("1", "timeout", b""),
            ItemOutcome("2", "ok", GENERATION),
        ]
        assert time.monotonic() - start >= limit_s
        # A guest that answers late learns that nobody waits.
        with pytest.raises(OSError, match="refused") as late:
            silent.answer(b"ok " + GENERATION)
        assert late.value.errno == errno.ECONNREFUSED
        assert silent.path.is_socket()

    await with_more_time(tell, *ENOUGH_S)


async def test_a_program_that_ended_before_is_forgotten(agent, watch) -> None:
    dead = watch("1")
    dead.sock.close()
    assert await agent.notify(PLENTY_S) == []
    assert not dead.path.exists()


async def test_a_program_that_ends_without_an_answer_is_forgotten(agent, watch) -> None:
    async def end(limit_s: float) -> None:
        watcher = watch("1")
        notified = asyncio.ensure_future(agent.notify(limit_s))
        await in_thread(watcher.receive)
        watcher.sock.close()
        assert await notified == []
        assert not watcher.path.exists()

    await with_more_time(end, *ENOUGH_S)


async def test_what_is_no_datagram_socket_is_told_of_and_left_alone(agent, watchers_dir: Path, watch) -> None:
    (watchers_dir / "file").touch()
    (watchers_dir / "folder").mkdir()
    elsewhere = watch("../elsewhere")
    (watchers_dir / "link").symlink_to(elsewhere.path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.bind(str(watchers_dir / "stream"))
        stream.listen()
        names = ["file", "folder", "link", "stream"]
        outcomes = await agent.notify(PLENTY_S)
        assert sorted(outcomes, key=lambda item: item.item) == [ItemOutcome(name, "invalid", b"") for name in names]
        assert sorted(os.listdir(watchers_dir)) == names


async def test_a_name_too_long_for_an_address_is_invalid(agent, watchers_dir: Path) -> None:
    (watchers_dir / ("n" * 255)).touch()
    assert await agent.notify(PLENTY_S) == [ItemOutcome("n" * 255, "invalid", b"")]


async def test_a_watcher_whose_queue_is_full_is_busy(agent, watch) -> None:
    full = watch("1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                sender.sendto(b"x", str(full.path))
        assert await agent.notify(PLENTY_S) == [ItemOutcome("1", "busy", b"")]


async def test_a_flood_of_answers_counts_as_one_and_holds_nobody_up(agent, watch) -> None:
    flooding, patient = watch("1"), watch("2")

    def flood() -> int:
        _, sender = flooding.receive()
        flooding.sock.setblocking(False)
        for sent in range(5000):
            try:
                flooding.sock.sendto(b"x" * 1000, sender)
            except OSError:
                return sent
        return 5000

    notified = asyncio.ensure_future(agent.notify(PLENTY_S))
    assert await asyncio.to_thread(flood) > 0
    await agent.ping()
    await in_thread(patient.answer, b"ok " + GENERATION)
    assert sorted(await notified, key=lambda item: item.item) == [
        ItemOutcome("1", "invalid", b"x" * EVIDENCE_LIMIT),
        ItemOutcome("2", "ok", GENERATION),
    ]


async def test_nobody_answers_for_another(agent, watch) -> None:
    async def pretend(limit_s: float) -> None:
        watcher, impostor = watch("1"), watch("../elsewhere")
        notified = asyncio.ensure_future(agent.notify(limit_s))
        _, sender = await asyncio.to_thread(watcher.receive)
        with pytest.raises(PermissionError):
            impostor.sock.sendto(b"ok " + GENERATION, sender)
        assert await notified == [ItemOutcome("1", "timeout", b"")]

    await with_more_time(pretend, *ENOUGH_S)


@pytest.mark.needs("root")
async def test_watchers_of_another_user_are_told_too(start_agent) -> None:
    root = Path(tempfile.mkdtemp(prefix="vmfork-watchers-"))
    root.chmod(0o755)
    try:
        folder = make_watchers_dir(root)
        with as_user(NOBODY):
            theirs = Watcher(folder, "1")
            theirs.path.chmod(0o600)
        ours = Watcher(folder, "2")
        ours.path.chmod(0o600)
        assert theirs.path.stat().st_uid == NOBODY
        # An agent that is not root, as it never is in a guest, may not send to root's.
        for user, outcome in ((None, ItemOutcome("2", "ok", GENERATION)), (NOBODY, ItemOutcome("2", "denied", b""))):
            running = start_agent("--root", str(root), user=user)
            async with await AgentClient.open(running.sock.dup()) as client:
                notified = asyncio.ensure_future(client.notify(PLENTY_S))
                await in_thread(theirs.answer, b"ok " + GENERATION)
                if user is None:
                    await in_thread(ours.answer, b"ok " + GENERATION)
                outcomes = sorted(await notified, key=lambda item: item.item)
            assert outcomes == [ItemOutcome("1", "ok", GENERATION), outcome]
        theirs.sock.close()
        ours.sock.close()
    finally:
        shutil.rmtree(root)


@contextmanager
def as_user(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_one_request_at_a_time(agent, watch) -> None:
    watcher = watch("1")
    notified = asyncio.ensure_future(agent.notify(PLENTY_S))
    await agent.ping()
    with pytest.raises(GuestError, match="busy"):
        await agent.notify(PLENTY_S)
    await in_thread(watcher.answer, b"ok " + GENERATION)
    assert await notified == [ItemOutcome("1", "ok", GENERATION)]


async def test_more_watchers_than_the_agent_takes_are_refused(start_agent, root_dir: Path, watch) -> None:
    for number in range(MOST_WATCHERS):
        watch(str(number))
    running = start_agent("--root", str(root_dir))
    async with await AgentClient.open(running.sock.dup()) as client:
        await client.ping()
        before = descriptors(running.process.pid)
        outcomes = await client.notify(SHORT_S)
        assert {(item.outcome, item.evidence) for item in outcomes} == {("timeout", b"")}
        assert len({item.item for item in outcomes}) == MOST_WATCHERS
        watch("one more")
        with pytest.raises(GuestError, match="busy"):
            await client.notify(SHORT_S)
        await client.ping()
        assert descriptors(running.process.pid) == before


async def test_a_client_that_gives_up_frees_the_agent(agent, watch) -> None:
    watcher = watch("1")
    with pytest.raises(DeadlineExceeded):
        await agent.notify(PLENTY_S, timeout_s=SHORT_S)
    told_before, _ = watcher.receive()
    assert told_before == GENERATION
    notified = asyncio.ensure_future(agent.notify(PLENTY_S))
    await in_thread(watcher.answer, b"ok " + GENERATION)
    assert await notified == [ItemOutcome("1", "ok", GENERATION)]


def exchange(sock: socket.socket, data: bytes, count: int) -> list[Frame]:
    """`data` is sent, and this many frames come back."""
    sock.settimeout(LIMIT_S)
    sock.sendall(data)
    parser, frames = FrameParser(), []
    while len(frames) < count:
        piece = sock.recv(65536)
        assert piece, "the agent ended"
        frames += parser.feed(piece)
    assert len(frames) == count
    return frames


def greet(sock: socket.socket) -> None:
    """The agent has forgotten what was open."""
    nonce = os.urandom(16)
    sock.settimeout(LIMIT_S)
    sock.sendall(TAKE_OVER_PREAMBLE + hello_request(99, nonce))
    got = b""
    while nonce not in got or not FrameParser().feed(got.split(nonce, 1)[1]):
        piece = sock.recv(65536)
        assert piece, "the agent ended"
        got += piece


def test_it_can_be_given_up(start_agent, root_dir: Path, watch) -> None:
    watch("1")
    running = start_agent("--root", str(root_dir))
    greet(running.sock)
    before = descriptors(running.process.pid)
    request = notify_request(7, PLENTY_S) + encode_request(8, Opcode.KILL, b"7", b"9")
    cancelled, done = exchange(running.sock, request, 2)
    assert (cancelled.kind, cancelled.stream, decode_fields(cancelled.payload)[0]) == (Kind.ERROR, 7, b"cancelled")
    assert (done.kind, done.stream) == (Kind.REPLY, 8)
    assert descriptors(running.process.pid) == before


def test_a_new_client_ends_it(start_agent, root_dir: Path, watch) -> None:
    watcher = watch("1")
    running = start_agent("--root", str(root_dir))
    greet(running.sock)
    before = descriptors(running.process.pid)
    running.sock.sendall(notify_request(7, PLENTY_S))
    _, sender = watcher.receive()
    assert descriptors(running.process.pid) > before
    greet(running.sock)
    assert descriptors(running.process.pid) == before
    with pytest.raises(ConnectionRefusedError):
        watcher.sock.sendto(b"ok " + GENERATION, sender)
    # No late REPLY, no late limit: the next frame is the answer to the next request.
    (pong,) = exchange(running.sock, encode_request(7, Opcode.PING), 1)
    assert pong == Frame(Kind.REPLY, 7, b"")


@pytest.mark.parametrize("limit", [b"", b"0", b"-1", b"3600001", b"99999999999999999999", b"1.5"])
def test_a_limit_that_makes_no_sense_is_invalid(start_agent, root_dir: Path, watchers_dir: Path, limit: bytes) -> None:
    running = start_agent("--root", str(root_dir))
    (refused,) = exchange(running.sock, encode_request(5, Opcode.NOTIFY, limit), 1)
    assert (refused.kind, decode_fields(refused.payload)[0]) == (Kind.ERROR, b"invalid")


def expected(answer: bytes) -> tuple[str, bytes]:
    text = answer[:EVIDENCE_LIMIT].split(b"\0")[0]
    for prefix, outcome in ((b"ok ", "ok"), (b"error ", "failed")):
        if text.startswith(prefix):
            rest = text[len(prefix) :]
            return ("invalid" if outcome == "ok" and rest != GENERATION else outcome), rest
    return "invalid", text


answers = st.one_of(
    st.binary(max_size=1200),
    st.builds(
        bytes.__add__,
        st.sampled_from((b"ok ", b"error ", b"ok", b"OK ", b" ok ")),
        st.one_of(st.sampled_from((GENERATION, GENERATION + b"\n", GENERATION[:-1], b"")), st.binary(max_size=700)),
    ),
)


def test_whatever_is_answered_is_an_outcome(start_agent, root_dir: Path, watch) -> None:
    watcher, running = watch("1"), start_agent("--root", str(root_dir))

    @settings(deadline=None)
    @given(answers)
    def check(answer: bytes) -> None:
        running.sock.sendall(notify_request(7, PLENTY_S))
        watcher.answer(answer)
        (reply,) = exchange(running.sock, b"", 1)
        assert reply.kind is Kind.REPLY
        assert parse_outcomes(reply.payload) == (ItemOutcome("1", *expected(answer)),)

    check()


frames = st.sampled_from(
    [
        notify_request(7, PLENTY_S),
        notify_request(8, 0.001),
        encode_request(7, Opcode.NOTIFY),
        encode_request(9, Opcode.KILL, b"7", b"9"),
        encode_request(9, Opcode.KILL, b"8", b"15"),
        encode_request(10, Opcode.ADOPT, b"generation", GENERATION),
        encode_request(11, Opcode.QUIESCE),
        encode_request(12, Opcode.PING),
        encode_credit(7, Channel.STDERR, 5),
        encode_data(7, Channel.CONTENT, b"data for a stream that takes none"),
        encode_eof(8, Channel.CONTENT),
        encode_frame(Kind.REQUEST, 7, b"\x11" + encode_fields(b"1", b"2")),
        hello_request(13, b"n" * 16),
    ]
)


def test_any_order_of_frames_leaves_the_agent_answering_and_clean(start_agent, root_dir: Path, watch) -> None:
    watch("1")
    running = start_agent("--root", str(root_dir))
    greet(running.sock)
    before = descriptors(running.process.pid)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(frames, max_size=10))
    def check(sent: list[bytes]) -> None:
        running.sock.sendall(b"".join(sent))
        greet(running.sock)
        assert exchange(running.sock, encode_request(7, Opcode.PING), 1) == [Frame(Kind.REPLY, 7, b"")]
        assert descriptors(running.process.pid) == before

    check()
