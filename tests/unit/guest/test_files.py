"""Files: content, names, and that nobody sees half of one."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from vmfork.agent.client import AgentClient
from vmfork.errors import GuestFileError
from vmfork.wire.message import DirEntry, write_request


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
