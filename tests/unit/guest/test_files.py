"""Files: content, names, and that nobody sees half of one."""

from __future__ import annotations

import asyncio
import os
import select
import stat
import subprocess
from pathlib import Path

import pytest

from vmfork.agent.client import AgentClient
from vmfork.agent.exchange import Exchange
from vmfork.errors import DeadlineExceeded, GuestFileError, LimitExceeded
from vmfork.wire.command import Command
from vmfork.wire.message import DirEntry, write_request

as_root = pytest.mark.needs("root")


def reason(caught: pytest.ExceptionInfo[GuestFileError]) -> str:
    return caught.value.reason


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3_000_000])
async def test_content_of_any_size_goes_there_and_back(agent, tmp_path: Path, size: int) -> None:
    content, path = os.urandom(size), tmp_path / "f"
    await agent.write_file(str(path), content)
    assert path.read_bytes() == content
    assert await agent.read_file(str(path)) == content


async def test_a_part_can_be_read(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    assert await agent.read_file(str(path), offset=3) == b"3456789"
    assert await agent.read_file(str(path), offset=3, length=2) == b"34"
    assert await agent.read_file(str(path), length=0) == b""
    assert await agent.read_file(str(path), offset=99) == b""
    assert await agent.read_file(str(path), length=99) == b"0123456789"


async def test_a_file_of_just_the_limit_is_read_and_a_byte_more_is_not(agent, tmp_path: Path) -> None:
    path, content = tmp_path / "f", os.urandom(100_000)
    path.write_bytes(content)
    for limit in (100_000, None):
        assert await agent.read_file(str(path), max_bytes=limit) == content
    for limit in (99_999, 65_536, 0):
        with pytest.raises(LimitExceeded, match=f"gave more than {limit} bytes") as told:
            await agent.read_file(str(path), max_bytes=limit)
        assert told.value.content == content[:limit]
        assert "output()" in told.value.hint
    assert await agent.read_file(str(path), length=10, max_bytes=10) == content[:10]


@pytest.mark.parametrize("more", [0, 1])
async def test_by_default_a_file_of_256_mib_is_read_and_a_byte_more_is_not(agent, tmp_path: Path, more: int) -> None:
    path, most = tmp_path / "f", 256 * 1024 * 1024
    with path.open("wb") as file:
        file.truncate(most + more)
    if more:
        with pytest.raises(LimitExceeded) as told:
            await agent.read_file(str(path), timeout_s=None)
        assert len(told.value.content) == most
    else:
        assert len(await agent.read_file(str(path), timeout_s=None)) == most


async def test_a_list_has_a_limit_too(agent, tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"name-{number:04}").touch()
    assert len(await agent.list_dir(str(tmp_path))) == 1000
    with pytest.raises(LimitExceeded, match=f"listing {tmp_path} gave more than 5000 bytes"):
        await agent.list_dir(str(tmp_path), max_bytes=5000)


async def test_a_file_of_the_kernel_can_be_read(agent) -> None:
    assert b"PPid:" in await agent.read_file("/proc/self/status")


@pytest.mark.parametrize(
    ("path", "code"),
    [("/no/such", "not-found"), ("/etc", "is-directory"), ("/dev/null", "invalid"), ("relative", "invalid")],
)
async def test_what_cannot_be_read_says_why(agent, path: str, code: str) -> None:
    with pytest.raises(GuestFileError) as caught:
        await agent.read_file(path)
    assert reason(caught) == code


async def test_a_written_file_has_the_mode_asked_for(agent, tmp_path: Path) -> None:
    await agent.write_file(str(tmp_path / "f"), b"", mode=0o6751)
    assert (tmp_path / "f").stat().st_mode & 0o7777 == 0o6751


async def test_writing_replaces_and_leaves_nothing_else(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    inode = path.stat().st_ino
    await agent.write_file(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_ino != inode
    assert os.listdir(tmp_path) == ["f"]


async def test_a_file_that_is_replaced_keeps_what_it_is(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o4751)
    try:
        os.setxattr(path, "user.note", b"kept")
        attributes = {"user.note": b"kept"}
    except OSError:  # not every file system of a host has them
        attributes = {}
    await agent.write_file(str(path), b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"new", 0o4751)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == attributes
    await agent.write_file(str(path), b"newer", mode=0o600)
    assert path.stat().st_mode & 0o7777 == 0o600


async def test_a_new_file_is_read_by_everybody(agent, tmp_path: Path) -> None:
    await agent.write_file(str(tmp_path / "f"), b"")
    await agent.write_file(str(tmp_path / "g"), b"", append=True)
    assert {(tmp_path / name).stat().st_mode & 0o7777 for name in "fg"} == {0o644}
    await agent.write_file(str(tmp_path / "h"), b"", append=True, mode=0o777)
    assert (tmp_path / "h").stat().st_mode & 0o7777 == 0o777


@as_root
async def test_a_file_that_is_replaced_keeps_its_owner(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    os.chown(path, 65534, 65533)
    path.chmod(0o2755)
    await agent.write_file(str(path), b"new")
    found = path.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (65534, 65533, 0o2755)


@as_root
async def test_what_a_file_may_do_is_not_lent_to_new_content(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    subprocess.run(["setcap", "cap_net_raw=ep", path], check=True)
    await agent.write_file(str(path), b"new")
    assert "security.capability" not in os.listxattr(path)


async def test_a_file_with_two_names_keeps_both(agent, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"old and long")
    os.link(tmp_path / "one", tmp_path / "other")
    await agent.write_file(str(tmp_path / "one"), b"new")
    assert (tmp_path / "other").read_bytes() == b"new"
    assert (tmp_path / "one").stat().st_nlink == 2


async def test_a_pipe_with_a_reader_is_written_through(agent, tmp_path: Path) -> None:
    """More than it holds at once, so that the writer waits for its reader, and the agent for neither."""
    pipe, content = tmp_path / "pipe", os.urandom(1_000_000)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writing = asyncio.ensure_future(agent.write_file(str(pipe), content))
    await something_comes(reader)
    assert await asyncio.to_thread(read_all, reader) == content
    await writing
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("append", [False, True])
async def test_a_pipe_without_a_reader_waits_for_one(agent, tmp_path: Path, append: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = asyncio.ensure_future(agent.write_file(str(pipe), b"x" * 200_000, append=append))
    for _ in range(3):
        await agent.ping()
    assert not writing.done()
    assert await asyncio.to_thread(pipe.read_bytes) == b"x" * 200_000
    await writing
    # Again, by way of a link, and with nothing to say.
    (tmp_path / "link").symlink_to("pipe")
    writing = asyncio.ensure_future(agent.write_file(str(tmp_path / "link"), b"", append=append))
    assert await asyncio.to_thread(pipe.read_bytes) == b""
    await writing


async def test_waiting_for_a_reader_can_be_given_up_and_leaves_nobody(agent, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(DeadlineExceeded):
        await agent.write_file(str(pipe), b"x", timeout_s=0.1)
    async with asyncio.timeout(50):  # who waited is killed, and then reaped
        children = b""
        while children.strip() != b"1":
            script = "ps --no-headers --ppid $PPID | wc -l"
            _, children, _ = await agent.exec(Command(["sh", "-c", script]), timeout_s=None)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 10) == b""
    os.close(reader)


async def test_a_reader_that_goes_is_told(agent, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writing = asyncio.ensure_future(agent.write_file(str(pipe), b"x" * 1_000_000))
    await something_comes(reader)
    os.close(reader)
    with pytest.raises(GuestFileError):
        await writing


async def something_comes(reader: int) -> None:
    """The pipe has a writer, and something of what it writes. Without one there would be nothing to read for good."""
    readable, _, _ = await asyncio.to_thread(select.select, [reader], [], [], 50.0)
    assert readable


def read_all(fd: int) -> bytes:
    os.set_blocking(fd, True)
    with open(fd, "rb") as file:
        return file.read()


async def test_a_device_stays_one(agent) -> None:
    await agent.write_file("/dev/null", b"x" * 200_000)
    await agent.write_file("/dev/null", b"", mode=0o600)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.stat("/dev/null").st_mode & 0o777 == 0o666
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file("/dev/full", b"x")
    assert reason(caught) == "no-space"


@as_root
async def test_a_file_of_the_kernel_is_written_as_it_is(agent) -> None:
    path = "/proc/sys/kernel/core_pattern"
    before = Path(path).read_bytes()
    await agent.write_file(path, before)
    assert Path(path).read_bytes() == before
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file("/proc/sys/kernel/pid_max", b"no number")
    assert reason(caught) == "invalid"


@as_root
async def test_a_file_that_is_mounted_is_written_as_it_is(start_mounting, tmp_path: Path) -> None:
    """Though a file like any other could be made beside it, and even renamed to where it is not."""
    (tmp_path / "real").write_bytes(b"old and long")
    (tmp_path / "mounted").touch()
    running = start_mounting(f"mount --bind {tmp_path}/real {tmp_path}/mounted")
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        await client.write_file(str(tmp_path / "mounted"), b"new")
        with pytest.raises(GuestFileError) as caught:
            await client.remove(str(tmp_path / "mounted"))
        assert reason(caught) == "busy"
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "mounted").read_bytes() == b""


async def test_room_is_asked_for_before_anything_is_written(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    client_says = write_request(99, str(path), None, append=False, parents=False, exclusive=False, size=1 << 60)
    failure = Exchange(99, explain=ValueError)
    agent._begin(failure, client_says)
    with pytest.raises(ValueError, match="bytes do not fit, there is room for") as caught:
        await failure.reply
    assert caught.value.args[0].code == "no-space"
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["f"])


@as_root
async def test_a_file_system_without_room_is_told_with_the_numbers(start_mounting, tmp_path: Path) -> None:
    running = start_mounting(f"mount -t tmpfs -o size=1M tmpfs {tmp_path}")
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        with pytest.raises(GuestFileError, match="2000000 bytes do not fit, there is room for 1048576") as caught:
            await client.write_file(str(tmp_path / "f"), b"x" * 2_000_000)
        assert reason(caught) == "no-space"
        assert "memory_mib" in caught.value.hint
        await client.write_file(str(tmp_path / "f"), b"x" * 1_000_000)
        # A replacement needs room beside the old; what goes into the same file does not.
        with pytest.raises(GuestFileError):
            await client.write_file(str(tmp_path / "f"), b"y" * 1_000_000)
        await client.exec(Command(["ln", str(tmp_path / "f"), str(tmp_path / "g")]), timeout_s=20)
        await client.write_file(str(tmp_path / "f"), b"y" * 1_000_000)
        assert await client.read_file(str(tmp_path / "g"), length=1) == b"y"


async def test_appending_appends(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    await agent.write_file(str(path), b"a", append=True, mode=0o600)
    await agent.write_file(str(path), b"b", append=True)
    assert path.read_bytes() == b"ab"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_exclusive_takes_no_others_place(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    await agent.write_file(str(path), b"first", exclusive=True)
    for append in (False, True):
        with pytest.raises(GuestFileError) as caught:
            await agent.write_file(str(path), b"second", exclusive=True, append=append)
        assert reason(caught) == "exists"
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["f"]


async def test_missing_folders_are_made_when_asked(agent, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "f"
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file(str(path), b"x")
    assert reason(caught) == "not-found"
    await agent.write_file(str(path), b"x", parents=True)
    assert path.read_bytes() == b"x"
    assert path.parent.stat().st_mode & 0o777 == 0o755


async def test_a_link_is_written_through(agent, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    await agent.write_file(str(tmp_path / "link"), b"new")
    assert (tmp_path / "real").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


async def test_a_link_is_followed_to_where_nothing_is_yet(agent, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "second").symlink_to("d/../first")
    (tmp_path / "first").symlink_to(tmp_path / "d" / "target")
    for append in (False, True):
        await agent.write_file(str(tmp_path / "second"), b"x", append=append)
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "d" / "target").read_bytes() == b"xx"
    (tmp_path / "deep").symlink_to("a/b/c")
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file(str(tmp_path / "deep"), b"x")
    assert reason(caught) == "not-found"
    await agent.write_file(str(tmp_path / "deep"), b"x", parents=True)
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"


async def test_a_link_that_leads_nowhere_is_refused(agent, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("target")
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file(str(tmp_path / "loop"), b"x")
    assert reason(caught) == "invalid"
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file(str(tmp_path / "dangling"), b"x", exclusive=True)
    assert reason(caught) == "exists"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "loop"]


async def test_a_link_of_proc_to_an_open_file_is_written_through(agent, tmp_path: Path) -> None:
    """Its text names a file that is gone, or another one."""
    path = tmp_path / "f"
    with path.open("w+b") as file:
        file.write(b"old and long")
        file.flush()
        path.unlink()
        Path(f"{path} (deleted)").write_bytes(b"another")
        await agent.write_file(f"/proc/{os.getpid()}/fd/{file.fileno()}", b"new")
        file.seek(0)
        assert file.read() == b"new"
    assert Path(f"{path} (deleted)").read_bytes() == b"another"


@pytest.mark.parametrize(
    ("name", "code"), [("", "is-directory"), ("/file/below", "not-directory"), ("/" + "n" * 300, "invalid")]
)
async def test_what_cannot_be_written_says_why(agent, tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file(f"{tmp_path}{name}", b"x" * 200_000)
    assert reason(caught) == code
    assert os.listdir(tmp_path) == ["file"]


async def test_a_full_disk_is_told_and_leaves_the_old_file(agent) -> None:
    with pytest.raises(GuestFileError) as caught:
        await agent.write_file("/dev/full", b"x", append=True)
    assert reason(caught) == "no-space"


async def test_a_write_that_is_cancelled_leaves_nothing(agent, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    writing = asyncio.ensure_future(agent.write_file(str(tmp_path / "f"), b"x" * 5_000_000))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await agent.ping()
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


async def test_a_connection_lost_in_the_middle_of_a_write_leaves_nothing(start_agent, tmp_path: Path) -> None:
    running = start_agent()
    client = await AgentClient.open(running.sock.dup())
    running.sock.close()
    await client.hello(take_over=False)
    client.send(write_request(77, str(tmp_path / "f"), 0o644, append=False, parents=False, exclusive=False))
    await client.ping()
    assert len(os.listdir(tmp_path)) == 1
    await client.aclose()
    running.finish()
    assert os.listdir(tmp_path) == []


async def test_stat_tells_of_the_link_itself(agent, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    path.chmod(0o640)
    seen, really = await agent.stat(str(path)), path.stat()
    assert (seen.type, seen.mode, seen.size, seen.target) == ("file", 0o640, 5, "")
    assert (seen.mtime_ns, seen.uid, seen.gid) == (really.st_mtime_ns, really.st_uid, really.st_gid)
    (tmp_path / "l").symlink_to("over/there")
    link = await agent.stat(str(tmp_path / "l"))
    assert (link.type, link.target) == ("link", "over/there")
    assert (await agent.stat("/")).type == "dir"
    assert (await agent.stat("/dev/null")).type == "other"
    with pytest.raises(GuestFileError) as caught:
        await agent.stat(str(tmp_path / "none"))
    assert reason(caught) == "not-found"


async def test_a_folder_of_thousands_is_listed(agent, tmp_path: Path) -> None:
    names = {f"{number:04}-{'n' * 180}" for number in range(3000)}
    for name in names:
        (tmp_path / name).touch()
    entries = await agent.list_dir(str(tmp_path))
    assert {entry.name for entry in entries} == names
    assert [entry.name for entry in entries] == sorted(names)


async def test_an_entry_tells_what_it_is(agent, tmp_path: Path) -> None:
    path = tmp_path / "\udcff name"
    path.write_bytes(b"123")
    (entry,) = await agent.list_dir(str(tmp_path))
    really = path.stat()
    assert entry == DirEntry(path.name, "file", really.st_mode & 0o7777, 3, really.st_mtime_ns)
    path.unlink()
    assert await agent.list_dir(str(tmp_path)) == ()
    for wrong, code in (("/no/such", "not-found"), ("/etc/passwd", "not-directory")):
        with pytest.raises(GuestFileError) as caught:
            await agent.list_dir(wrong)
        assert reason(caught) == code


async def test_a_tree_deeper_than_a_path_may_be_long_is_removed(agent, tmp_path: Path) -> None:
    depth, here = 3000, os.open(tmp_path, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("n" * 20 if level else "tree", dir_fd=here)
        os.close(os.open(f"file{level}", os.O_CREAT, dir_fd=here))
        below = os.open("n" * 20 if level else "tree", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    await agent.remove(str(tmp_path / "tree"), recursive=True)
    assert os.listdir(tmp_path) == ["file0"]


def grow(tree: Path, folders: int) -> int:
    """So many folders of a thousand names each are in `tree`; how many names that is."""
    names = 1000
    for folder in range(folders):
        (tree / str(folder)).mkdir(parents=True)
        for number in range(names):
            path = tree / str(folder) / str(number)
            os.link(tree / "0" / "0", path) if folder or number else path.touch()
    return folders * names


async def test_a_long_removal_holds_up_nobody_and_can_be_given_up(agent, tmp_path: Path) -> None:
    # On a busy host the agent is to have no more of it than who watches, lest it be done before anybody looks.
    _, pid, _ = await agent.exec(Command(["sh", "-c", "echo $PPID"]), timeout_s=20)
    os.setpriority(os.PRIO_PROCESS, int(pid), 19)
    for folders in (20, 60, 180):  # and where it was done all the same, once more with more of it
        tree = tmp_path / f"tree-{folders}"
        count = grow(tree, folders)
        removing = asyncio.ensure_future(agent.remove(str(tree), recursive=True))
        _, stdout, _ = await agent.exec(Command(["echo", "meanwhile"]), timeout_s=20)
        assert stdout == b"meanwhile\n"
        if not removing.done():
            break
        await removing
    else:
        pytest.fail("whatever there was had gone before a program ended")
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing
    await agent.ping()
    left = sum(len(files) for _, _, files in os.walk(tree))
    assert 0 < left < count
    await agent.ping()
    assert sum(len(files) for _, _, files in os.walk(tree)) == left
    await agent.remove(str(tree), recursive=True)
    assert os.listdir(tmp_path) == []


@as_root
async def test_what_is_mounted_below_a_folder_is_not_removed(start_mounting, tmp_path: Path) -> None:
    """Not even another folder of the same file system."""
    kept, tree = tmp_path / "kept", tmp_path / "tree"
    (tree / "a" / "mounted").mkdir(parents=True)
    kept.mkdir()
    (kept / "f").touch()
    running = start_mounting(f"mount --bind {kept} {tree}/a/mounted")
    async with await AgentClient.open(running.sock.dup()) as client:
        running.sock.close()
        with pytest.raises(GuestFileError) as caught:
            await client.remove(str(tree), recursive=True)
        assert reason(caught) == "busy"
    assert (kept / "f").exists()


async def test_removing_takes_one_thing_or_all_below(agent, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "f").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tree / "link").symlink_to(outside)
    with pytest.raises(GuestFileError) as caught:
        await agent.remove(str(tree))
    assert reason(caught) == "not-empty"
    await agent.remove(str(tree / "a" / "b"))
    await agent.remove(str(tree), recursive=True)
    assert not tree.exists()
    assert (outside / "kept").exists()
    with pytest.raises(GuestFileError) as caught:
        await agent.remove(str(tree), recursive=True)
    assert reason(caught) == "not-found"


async def test_a_folder_is_made_with_its_mode(agent, tmp_path: Path) -> None:
    await agent.make_dir(str(tmp_path / "d"), mode=0o1777)
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o1777
    with pytest.raises(GuestFileError) as caught:
        await agent.make_dir(str(tmp_path / "d"))
    assert reason(caught) == "exists"
    await agent.make_dir(str(tmp_path / "d"), parents=True)
    await agent.make_dir(str(tmp_path / "x" / "y"), parents=True, mode=0o700)
    assert (tmp_path / "x" / "y").stat().st_mode & 0o7777 == 0o700
    (tmp_path / "f").touch()
    with pytest.raises(GuestFileError) as caught:
        await agent.make_dir(str(tmp_path / "f" / "d"), parents=True)
    assert reason(caught) == "not-directory"
