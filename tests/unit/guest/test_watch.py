"""What the real agent tells of files, as it happens to them on the host."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmfork.agent.client import AgentClient
from vmfork.errors import Closed, DeadlineExceeded, GuestError, GuestFileError, ProtocolError
from vmfork.wire.event import EventParser, FileEvent
from vmfork.wire.frame import encode_fields

if TYPE_CHECKING:
    from vmfork.agent.watch import Watch

LIMIT_S = 30
as_root = pytest.mark.needs("root")


async def events_until(watch: Watch, kind: str, path: Path | str) -> list[tuple[str, str]]:
    """What happened up to that, by kind and path from the folder that is watched on."""
    found = []
    while True:
        event = await watch.next(timeout_s=LIMIT_S)
        assert event is not None, found
        found.append((event.kind, event.path.removeprefix(watch.path).lstrip("/")))
        if (event.kind, event.path) == (kind, str(path)):
            return found


async def test_what_happens_in_a_folder_is_told_in_its_order(agent, tmp_path: Path) -> None:
    async with await agent.watch(str(tmp_path)) as watch:
        (tmp_path / "a").write_text("x")
        (tmp_path / "a").chmod(0o600)
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "b").unlink()
        (tmp_path / "d").mkdir()
        assert await events_until(watch, "created", tmp_path / "d") == [
            ("created", "a"),
            ("changed", "a"),
            ("closed", "a"),
            ("attributes", "a"),
            ("moved-away", "a"),
            ("moved-here", "b"),
            ("removed", "b"),
            ("created", "d"),
        ]
        (tmp_path / "d" / "below").touch()  # not asked for
        (tmp_path / "last").touch()
        last = await watch.next(timeout_s=LIMIT_S)
        assert last == FileEvent("created", str(tmp_path / "last"))


async def test_both_halves_of_a_move_belong_together(agent, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    async with await agent.watch(str(tmp_path)) as watch:
        (tmp_path / "d").rename(tmp_path / "e")
        one, other = await watch.next(timeout_s=LIMIT_S), await watch.next(timeout_s=LIMIT_S)
        assert one is not None
        assert other is not None
        assert (one.kind, one.is_dir, other.kind, other.is_dir) == ("moved-away", True, "moved-here", True)
        assert one.pair == other.pair != 0


async def test_all_below_is_watched_and_new_folders_miss_nothing(agent, tmp_path: Path) -> None:
    (tmp_path / "old" / "deep").mkdir(parents=True)
    async with await agent.watch(str(tmp_path), recursive=True) as watch:
        (tmp_path / "old" / "deep" / "x").touch()
        await events_until(watch, "created", tmp_path / "old" / "deep" / "x")
        for number in range(20):
            (tmp_path / "new" / str(number)).mkdir(parents=True)
            (tmp_path / "new" / str(number) / "f").write_text("x")
        (tmp_path / "last").touch()
        told = await events_until(watch, "created", tmp_path / "last")
        # Of a folder that was made meanwhile it is read when its turn comes.
        while len({path for kind, path in told if kind == "created" and path.endswith("/f")}) < 20:
            event = await watch.next(timeout_s=LIMIT_S)
            assert event is not None
            told.append((event.kind, event.path.removeprefix(f"{tmp_path}/")))
        # What moves away is told no more, and what comes back is, by its new name.
        (tmp_path / "old").rename(tmp_path / "renamed")
        await events_until(watch, "moved-here", tmp_path / "renamed")
        while True:  # it is read by then
            (tmp_path / "renamed" / "deep" / "probe").touch()
            (tmp_path / "last").touch()
            told = await events_until(watch, "attributes", tmp_path / "last")
            if any("probe" in path for _, path in told):
                break
        assert not any(path.startswith("old") for _, path in told)
        shutil.rmtree(tmp_path / "renamed")
        await events_until(watch, "removed", tmp_path / "renamed")


@as_root
async def test_a_folder_that_is_mounted_below_itself_is_watched_once_by_its_own_name(start_mounting, tmp_path) -> None:
    (tmp_path / "below" / "again").mkdir(parents=True)
    running = start_mounting(f"mount --bind {tmp_path} {tmp_path}/below/again")
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        async with await client.watch(str(tmp_path), recursive=True) as watch:
            (tmp_path / "below" / "x").touch()
            (tmp_path / "last").touch()
            told = await events_until(watch, "created", tmp_path / "last")
            assert [path for kind, path in told if kind == "created"] == ["below/x", "last"]


async def test_the_end_of_what_is_watched_is_told(agent, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    for path, end in ((tmp_path / "d", os.rmdir), (tmp_path / "f", os.unlink)):
        async with await agent.watch(str(path)) as watch:
            end(path)
            events = [event async for event in watch.events()]
            assert events[-1] == FileEvent("gone", str(path))
            assert await watch.next() is None


async def test_a_file_alone_is_watched_and_links_are_followed(agent, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "link").symlink_to("f")
    async with await agent.watch(str(tmp_path / "link")) as watch:
        (tmp_path / "f").write_text("x")
        assert (await events_until(watch, "closed", tmp_path / "link"))[0] == ("changed", "")


async def test_what_is_not_taken_in_time_overflows_and_the_watch_goes_on(agent, tmp_path: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    async with await agent.watch(str(tmp_path), recursive=True) as watch:
        (tmp_path / "a").touch()
        (tmp_path / "b").touch()
        for _ in range(most + 4000):  # alike ones that follow each other are one
            os.utime(tmp_path / "a")
            os.utime(tmp_path / "b")
        (tmp_path / "lost").mkdir()
        await agent.ping()  # nobody else waits
        found = await events_until(watch, "overflow", tmp_path)
        assert len(found) > most // 2
        while True:
            (tmp_path / "lost" / "x").write_text("x")
            (tmp_path / "a").write_text("x")
            if any(path == "lost/x" for _, path in await events_until(watch, "closed", tmp_path / "a")):
                break


async def test_what_cannot_be_watched_is_named(agent, tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "not-found"), (f"/{'x' * 5000}", "invalid")):
        with pytest.raises(GuestFileError) as caught:
            await agent.watch(str(path))
        assert caught.value.reason == reason


async def test_more_folders_than_can_be_watched_are_an_error(agent, tmp_path: Path) -> None:
    for number in range(8200):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(GuestFileError, match="more folders") as caught:
        await agent.watch(str(tmp_path), recursive=True)
    assert caught.value.reason == "busy"
    await agent.ping()


async def test_who_watches_keeps_the_machine_from_a_freeze(agent, tmp_path: Path) -> None:
    """Its fork would be told of what it never asked for."""
    async with await agent.watch(str(tmp_path)):
        with pytest.raises(GuestError, match="files are watched"):
            await agent.quiesce()
    await agent.quiesce()


async def test_a_deadline_that_passes_loses_nothing_and_an_end_ends_it_in_the_guest(agent, tmp_path: Path) -> None:
    watch = await agent.watch(str(tmp_path))
    with pytest.raises(DeadlineExceeded):
        await watch.next(timeout_s=0.01)
    waiting = asyncio.ensure_future(watch.next())
    await asyncio.sleep(0)
    waiting.cancel()
    (tmp_path / "a").touch()
    event = await watch.next(timeout_s=LIMIT_S)
    assert event is not None
    assert event.kind == "created"
    await watch.aclose()
    await watch.aclose()
    with pytest.raises(Closed):
        await watch.next()
    await agent.ping()
    assert await agent.list_dir(str(tmp_path))


def record(kind: bytes, path: bytes = b"", what: bytes = b"", pair: bytes = b"0") -> bytes:
    return encode_fields(kind, path, what, pair)


@pytest.mark.parametrize(
    "data",
    [
        record(b"created", b"x"),  # before it is ready
        record(b"ready") + record(b"invented"),
        record(b"ready") + record(b"created", b"a\0b"),
        record(b"ready") + record(b"created", b"a", b"", b"-1"),
        record(b"ready") + record(b"created", b"x" * 9000),
        record(b"ready") + b"\xff\xff\xff\xff",
    ],
)
def test_what_is_no_event_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(EventParser("/x").feed(data))


def test_events_are_read_in_any_pieces() -> None:
    parser, data = EventParser("/"), record(b"ready") + record(b"moved-here", b"a/\xff", b"dir", b"7")
    events = [event for at in range(len(data)) for event in parser.feed(data[at : at + 1])]
    assert events == [FileEvent("moved-here", "/a/\udcff", True, 7)]
