"""Trees to the real agent and back: what is kept, what breaks, and what the agent makes of nonsense."""

from __future__ import annotations

import asyncio
import filecmp
import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from vmfork.agent.client import AgentClient
from vmfork.agent.flow import Outpour
from vmfork.errors import ConfigError, DeadlineExceeded, GuestFileError, LimitExceeded
from vmfork.host.packing import Packing
from vmfork.host.unpacking import Place, Unpacking
from vmfork.image.recipe import find_agent
from vmfork.wire import message
from vmfork.wire.tree import MOST_DEPTH, Entry, encode_entry, encode_piece, encode_up

as_root = pytest.mark.needs("root")

SPARSE_SIZE = 64 * 1024 * 1024


def reason(caught: pytest.ExceptionInfo[GuestFileError]) -> str:
    return caught.value.reason


def place(path: Path, **options) -> Unpacking:
    return Unpacking(Place(path=str(path), name="asked-for", operation="copying", **options))


def make_tree(root: Path) -> Path:
    """One of each: modes, times before 1970 and to the nanosecond, names that are no text, links, holes, sizes."""
    (root / "sub" / "deep").mkdir(parents=True)
    for size in (0, 1, 65_535, 65_536, 65_537, 300_000):
        (root / "sub" / str(size)).write_bytes(os.urandom(size))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o751)
    os.link(root / "run.sh", root / "sub" / "deep" / "again")
    (root / "link").symlink_to("sub/deep/again")
    (root / "nowhere").symlink_to("sub/none")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\n\x1b")).write_text("odd")
    with (root / "sparse").open("wb") as sparse:
        sparse.seek(SPARSE_SIZE // 2)
        sparse.write(b"middle")
        sparse.truncate(SPARSE_SIZE)
    os.utime(root / "link", ns=(5, 1_234_567_890_123_456_789), follow_symlinks=False)
    os.utime(root / "run.sh", ns=(5, -1_500_000_001))
    (root / "sub").chmod(0o2750)
    os.utime(root / "sub", ns=(5, 1_000_000_007))
    return root


def describe(root: Path, *, but_folders: bool = False) -> dict[str, tuple[object, ...]]:
    """All that a copy keeps."""
    found = {}
    for path in (root, *sorted(root.rglob("*"))):
        st = path.lstat()
        if but_folders and stat.S_ISDIR(st.st_mode):
            continue
        size = st.st_size if stat.S_ISREG(st.st_mode) else 0
        target = os.readlink(path) if path.is_symlink() else ""
        mode = stat.S_IMODE(st.st_mode) & 0o777
        found[str(path.relative_to(root))] = stat.S_IFMT(st.st_mode), mode, st.st_mtime_ns, size, target
    return found


def check_same(one: Path, other: Path, *, but_folders: bool = False, keeps_holes: bool = True) -> None:
    assert describe(other, but_folders=but_folders) == describe(one, but_folders=but_folders)
    assert {path.name for path in other.rglob("*")} == {path.name for path in one.rglob("*")}
    for path in one.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert filecmp.cmp(path, other / path.relative_to(one), shallow=False)
    assert os.path.samefile(other / "run.sh", other / "sub" / "deep" / "again")
    assert not keeps_holes or (other / "sparse").stat().st_blocks * 512 < SPARSE_SIZE // 8


async def test_a_tree_goes_there_and_back_as_it_was(agent, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    put = await agent.put(Packing(str(source)), str(tmp_path / "guest"))
    check_same(source, tmp_path / "guest")
    assert (tmp_path / "guest" / "sub").stat().st_mode & 0o7000 == 0
    got = await agent.get(str(tmp_path / "guest"), place(tmp_path / "back"))
    check_same(source, tmp_path / "back")
    for copied in (put, got):
        assert (copied.files, copied.folders, copied.links) == (9, 3, 3)
        assert copied.skipped == ()
    # Once more over what is there: the same again, and nothing besides. Folders that are there keep their own.
    await agent.put(Packing(str(source)), str(tmp_path / "guest"))
    check_same(source, tmp_path / "guest", but_folders=True)
    await agent.get(str(tmp_path / "guest"), place(tmp_path / "back"))
    check_same(source, tmp_path / "back", but_folders=True)


@as_root
async def test_an_archive_keeps_owners_and_all_of_the_mode_in_the_guest(agent, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    os.chown(source / "run.sh", 7, 8)
    (source / "run.sh").chmod(0o4751)
    os.chown(source / "link", 9, 9, follow_symlinks=False)
    os.chown(source / "sub" / "deep", 7, 8)
    await agent.put(Packing(str(source)), str(tmp_path / "guest"), archive=True)
    await agent.get(str(tmp_path / "guest"), place(tmp_path / "back", archive=True))
    for copy, mode in ((tmp_path / "guest", 0o4751), (tmp_path / "back", 0o751)):
        st = (copy / "run.sh").stat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (7, 8, mode)
        assert (copy / "link").lstat().st_uid == 9
        assert (copy / "sub" / "deep").stat().st_gid == 8
    await agent.put(Packing(str(source)), str(tmp_path / "plain"))
    assert (tmp_path / "plain" / "run.sh").stat().st_uid == os.geteuid()


async def test_a_file_goes_to_a_name_or_into_a_folder(agent, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to("folder")
    (tmp_path / "to-file").symlink_to("folder/linked")
    for goal in ("new", "folder", "to-folder/", "to-file", "new"):
        await agent.put(Packing(str(source)), str(tmp_path / goal))
    for path in ("new", "folder/source", "folder/linked"):
        assert (tmp_path / path).read_text() == "content"
    assert (tmp_path / "to-file").is_symlink()
    assert sorted(os.listdir(tmp_path / "folder")) == ["linked", "source"]
    await agent.put(Packing(str(source)), str(tmp_path / "a" / "b" / "c"), parents=True)
    assert (tmp_path / "a" / "b" / "c").read_text() == "content"


async def test_what_a_copy_cannot_replace_is_named(agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder" / "file").mkdir(parents=True)
    (tmp_path / "tree" / "folder").mkdir(parents=True)
    cases = (
        ("tree", "file", "not-directory"),
        ("file", "none/", "not-directory"),
        ("file", "none/x", "not-found"),
        ("file", "folder", "is-directory"),
        ("tree", "file/x", "not-directory"),
        ("file", "n" * 256, "invalid"),
        ("file", "x/" * 2500, "invalid"),
    )
    for source, goal, code in cases:
        with pytest.raises(GuestFileError) as caught:
            await agent.put(Packing(str(tmp_path / source)), f"{tmp_path}/{goal}")
        assert (goal, reason(caught)) == (goal, code)
    assert (tmp_path / "file").read_text() == "old"
    with pytest.raises(GuestFileError) as caught:
        await agent.get(str(tmp_path / "none"), place(tmp_path / "x"))
    assert reason(caught) == "not-found"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GuestFileError) as caught:
        await agent.get(str(tmp_path / "pipe"), place(tmp_path / "x"))
    assert reason(caught) == "invalid"
    assert not (tmp_path / "x").exists()


async def test_an_error_tells_what_had_arrived(agent, tmp_path: Path) -> None:
    source, goal = tmp_path / "source", tmp_path / "goal"
    source.mkdir()
    for name in "abcde":
        (source / name).write_bytes(b"x" * 20_000)
    (goal / "d").mkdir(parents=True)
    with pytest.raises(
        GuestFileError, match=r"Is a directory \(at 'd'; 3 files, 1 folder .*the last of them 'c'"
    ) as put:
        await agent.put(Packing(str(source)), str(goal))
    assert put.value.arrived is not None
    assert (put.value.arrived.files, put.value.arrived.last) == (3, "c")
    assert sorted(os.listdir(goal)) == ["a", "b", "c", "d"]
    with pytest.raises(LimitExceeded) as got:
        await agent.get(str(source), place(tmp_path / "back", max_bytes=60_000))
    arrived = got.value.arrived
    assert arrived is not None
    assert arrived.files == len(os.listdir(tmp_path / "back")) == 2


async def test_what_cannot_be_copied_is_named(agent, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").write_text("x")
    put = await agent.put(Packing(str(source)), str(tmp_path / "goal"))
    got = await agent.get(str(source), place(tmp_path / "back"))
    assert put.skipped == got.skipped == ("pipe",)
    assert os.listdir(tmp_path / "goal") == os.listdir(tmp_path / "back") == ["file"]


async def test_a_file_of_the_kernels_is_read_though_it_tells_no_size(agent, tmp_path: Path) -> None:
    await agent.get("/proc/version", place(tmp_path / "got"))
    await agent.put(Packing("/proc/version"), str(tmp_path / "put"))
    assert (tmp_path / "got").read_text() == (tmp_path / "put").read_text() == Path("/proc/version").read_text()


async def test_other_requests_are_served_while_a_copy_runs(agent, tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as big:
        big.truncate(0)
        for _ in range(48):
            big.write(os.urandom(1 << 20))
    putting = asyncio.ensure_future(agent.put(Packing(str(tmp_path / "big")), str(tmp_path / "goal")))
    pings = 0
    while not putting.done():
        await agent.ping()
        pings += 1
    assert (await putting).size_bytes == 48 << 20
    assert pings > 1


@pytest.mark.parametrize("direction", ["put", "get"])
async def test_a_copy_that_is_given_up_leaves_no_half_file(agent, tmp_path: Path, direction: str) -> None:
    source, goal = tmp_path / "source", tmp_path / "goal"
    source.mkdir()
    goal.mkdir()
    (source / "a").write_bytes(b"a")
    (source / "b").write_bytes(os.urandom(64 << 20))
    seen = asyncio.Event()

    def progress(_event) -> None:
        seen.set()

    if direction == "put":
        copying = asyncio.ensure_future(agent.put(Packing(str(source)), str(goal), progress=progress))
    else:
        copying = asyncio.ensure_future(agent.get(str(source), place(goal), progress=progress))
    await seen.wait()
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    # KILL closes the stream; what comes after it is answered behind it.
    await agent.ping()
    assert set(os.listdir(goal)) <= {"a", "b"}
    for path in goal.iterdir():
        assert filecmp.cmp(path, source / path.name, shallow=False)


async def test_a_deadline_is_kept_and_tells_what_arrived(agent, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 1_000_000)
    with pytest.raises(DeadlineExceeded) as caught:
        await agent.put(Packing(str(tmp_path / "f")), str(tmp_path / "g"), timeout_s=0)
    assert caught.value.arrived is not None
    await agent.ping()
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("depth", [MOST_DEPTH - 1, MOST_DEPTH])
async def test_a_tree_may_be_as_deep_as_the_limit_and_no_deeper(agent, tmp_path: Path, depth: int) -> None:
    deep = tmp_path / "source" / "/".join("d" * depth)
    deep.mkdir(parents=True)
    if depth < MOST_DEPTH:
        await agent.put(Packing(str(tmp_path / "source")), str(tmp_path / "goal"))
        await agent.get(str(tmp_path / "goal"), place(tmp_path / "back"))
        assert (tmp_path / "back" / "/".join("d" * depth)).is_dir()
        return
    with pytest.raises(ConfigError, match="folders deep"):
        await agent.put(Packing(str(tmp_path / "source")), str(tmp_path / "goal"))
    with pytest.raises(GuestFileError, match="File name too long"):
        await agent.get(str(tmp_path / "source"), place(tmp_path / "back"))


FOLDER = encode_entry(Entry("dir", b"d", 0o755, 1, 0, 0, 0))
FILE = encode_entry(Entry("file", b"f", 0o644, 2, 0, 0, 3))


@pytest.mark.parametrize(
    "tree",
    [
        b"",
        FOLDER,
        FOLDER + FILE + encode_piece(0, b"abc"),
        FOLDER + FILE + encode_piece(0, b"abc")[:-1],
        FOLDER + encode_up() + FILE,
        encode_up(),
        FOLDER + encode_entry(Entry("file", b"../f", 0o644, 2, 0, 0, 3)),
        FOLDER + encode_entry(Entry("hard", b"f", 0o644, 2, 0, 0, 3, b"../x")),
        FOLDER + encode_entry(Entry("other", b"f", 0o644, 2, 0, 0, 3)),
        FOLDER + FILE + encode_piece(7, b"abc") + encode_piece(0, b"x"),
        FOLDER + FILE + encode_piece(2**64 - 2, b"abc"),
        FOLDER + FILE + encode_piece(2**63, b""),
        FOLDER + encode_entry(Entry("file", b"f", 0o644, -(2**64), 0, 0, 3)),
        b"\xff" * 100,
        b"\0\0\0\1x",
    ],
)
async def test_what_is_no_tree_is_refused_and_leaves_no_half_file(agent, tmp_path: Path, tree: bytes) -> None:
    flow = Outpour(
        agent._new_stream(),
        widened=0,
        send=agent.send,
        wait_room=agent.wait_room,
        explain=lambda failure: ValueError(failure.code),
    )
    request = message.put_request(flow.stream, f"{tmp_path}/g", parents=False, archive=False, size=0)
    await agent._begin_in_turn(flow, lambda _: request)
    await flow.pour(tree)
    flow.end()
    with pytest.raises(ValueError, match="invalid"):
        await flow.reply
    await agent.ping()
    assert [path.name for path in tmp_path.rglob("*") if path.name != "g"] == []


async def test_names_of_a_tree_come_without_content(agent, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    entries = await agent.list_tree(str(source))
    assert [entry.name for entry in entries] == sorted(str(path.relative_to(source)) for path in source.rglob("*"))
    sizes = {entry.name: (entry.type, entry.size) for entry in entries}
    assert sizes["sub/300000"] == ("file", 300_000)
    assert (sizes["link"][0], sizes["sub"][0]) == ("link", "dir")
    with pytest.raises(GuestFileError) as caught:
        await agent.list_tree(str(source / "run.sh"))
    assert reason(caught) == "not-directory"
    with pytest.raises(LimitExceeded):
        await agent.list_tree(str(source), max_bytes=100)


async def test_a_file_is_moved_at_once_and_not_onto_what_would_be_lost(agent, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    (tmp_path / "full" / "x").mkdir(parents=True)
    await agent.move(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_text() == "a"
    await agent.move(str(tmp_path / "full"), str(tmp_path / "moved"))
    assert (tmp_path / "moved" / "x").is_dir()
    for path, to, code in (("a", "c", "not-found"), ("b", "moved", "is-directory"), ("moved", "moved/x/y", "invalid")):
        with pytest.raises(GuestFileError) as caught:
            await agent.move(str(tmp_path / path), str(tmp_path / to))
        assert reason(caught) == code
    with pytest.raises(GuestFileError) as caught:
        await agent.move(str(tmp_path / "b"), "/dev/shm/vmfork-moved")
    assert "copied" in caught.value.hint


@as_root
async def test_mode_and_owner_are_changed_alone_or_together(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    await agent.change(str(path), mode=0o4711)
    assert stat.S_IMODE(path.stat().st_mode) == 0o4711
    await agent.change(str(path), user="daemon", group="7")
    st = path.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1, 7, 0o711)
    await agent.change(str(path), user="12345", mode=0o6600)
    st = path.stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (12345, 7, 0o6600)
    for who in ({"user": "no-such"}, {"group": "no-such"}, {"group": str(2**32 - 1)}, {"user": "-1"}):
        with pytest.raises(GuestFileError) as caught:
            await agent.change(str(path), **who)
        assert reason(caught) == "no-user"


def peak_kib(pid: int) -> int:
    """The most memory that the process had at a time."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


async def test_a_large_file_takes_no_more_memory_than_a_small_one(start_agent, tmp_path: Path) -> None:
    """The shipped agent: sanitizers keep what was freed."""
    with (tmp_path / "big").open("wb") as big:
        for _ in range(64):
            big.write(os.urandom(1 << 20))
    running = start_agent(binary=find_agent())
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        tracemalloc.start()
        try:
            await client.put(Packing(str(tmp_path / "big")), str(tmp_path / "goal"))
            await client.get(str(tmp_path / "goal"), place(tmp_path / "back"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert filecmp.cmp(tmp_path / "big", tmp_path / "back", shallow=False)
        assert (peak_kib(running.process.pid) < 4096, peak < 16 << 20) == (True, True)
