"""Tars to the real agent and back: what is kept, what is refused, and what a tar that is none leaves."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
import threading
import tracemalloc
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.guest.test_copies import check_same, describe, make_tree, place
from vmfork.errors import ConfigError, DeadlineExceeded, GuestFileError, HostError, LimitExceeded, ProtocolError
from vmfork.host.tar_packing import TarPacking
from vmfork.host.tar_unpacking import TarUnpacking
from vmfork.wire.tree import SHARED, Entry, encode_entry, encode_piece, encode_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIMIT_S = 30


@contextmanager
def piped(content: bytes) -> Iterator[int]:
    """A descriptor that gives `content` in pieces, as a pipe does."""
    reading, writing = os.pipe()

    def write() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb") as sink:
            sink.write(content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield reading
    finally:
        os.close(reading)
        writer.join()


def tar_of(folder: Path, *options: str) -> bytes:
    """What GNU tar makes of all that is in the folder."""
    return subprocess.run(["tar", "-C", folder, *options, "-cf", "-", "."], check=True, capture_output=True).stdout


def one(
    name: str,
    content: bytes = b"x",
    *,
    kind: bytes = tarfile.REGTYPE,
    target: str = "",
    told: Mapping[str, str] | None = None,
) -> bytes:
    """A tar of one member, of which a header of pax says what is `told`."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        member.pax_headers = dict(told or {})
        member.size = len(content) if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(content))
    return held.getvalue()


async def put(agent, content: bytes, goal: Path, **options):
    goal.mkdir(exist_ok=True)
    with piped(content) as fd:
        return await agent.put(TarPacking(fd), str(goal), **options)


def read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        return file.read()


async def get(agent, source: Path, **options) -> bytes:
    """The tar that comes of the folder or file."""
    reading, writing = os.pipe()
    whole = asyncio.ensure_future(asyncio.to_thread(read_all, reading))
    try:
        sink = TarUnpacking(writing, **{"prefix": "it", "operation": "copying", **options})
        await agent.get(str(source), sink)
    finally:
        os.close(writing)
        content = await whole
    return content


@pytest.mark.parametrize("options", [(), ("--gzip",), ("--format=pax", "--sparse"), ("--format=ustar",)])
async def test_what_gnu_tar_made_is_there_as_it_was(agent, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = make_tree(tmp_path / "source")
    for path in (source / "run.sh", source / "sub"):  # only pax has more digits, and times before 1970
        os.utime(path, (5, 1_000_000_007))
    os.utime(source / "link", (5, 1_000_000_007), follow_symlinks=False)
    for path in source.rglob("*"):
        if "pax" not in "".join(options):
            os.utime(path, (5, int(path.lstat().st_mtime)), follow_symlinks=False)
    copied = await put(agent, tar_of(source, *options), tmp_path / "goal")
    assert (copied.files, copied.links) == (9, 3)
    found, made = describe(source), describe(tmp_path / "goal")
    assert made | {".": ()} == found | {".": ()}  # the folder was there, and keeps its own
    assert os.path.samefile(tmp_path / "goal" / "run.sh", tmp_path / "goal" / "sub" / "deep" / "again")
    if "--sparse" in options:
        assert (tmp_path / "goal" / "sparse").stat().st_blocks * 512 < 1 << 20


async def test_gnu_tar_unpacks_what_came(agent, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    os.utime(source / "run.sh", ns=(5, 1_234_567_890_987_654_321))
    os.mkfifo(source / "pipe")
    content = await get(agent, source)
    (source / "pipe").unlink()
    (tmp_path / "back").mkdir()
    done = subprocess.run(["tar", "-C", tmp_path / "back", "-xf", "-"], input=content, check=True, capture_output=True)
    assert done.stderr == b""
    check_same(source, tmp_path / "back" / "it", but_folders=True, keeps_holes=False)
    # And so does this agent.
    await put(agent, content, tmp_path / "again")
    check_same(source, tmp_path / "again" / "it", but_folders=True, keeps_holes=False)


async def test_a_file_alone_and_one_that_tells_no_size_come_as_a_tar(agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"y" * 700)
    for source in (Path("/proc/version"), tmp_path / "file"):
        with tarfile.open(fileobj=io.BytesIO(await get(agent, source))) as tar:
            (member,) = tar.getmembers()
            content = tar.extractfile(member)
            assert content is not None
            assert (member.name, content.read()) == ("it", source.read_bytes())


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", "x" * 256, "/".join(["d"] * 300)])
async def test_a_name_that_is_none_is_refused_and_leaves_nothing(agent, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name inside"):
        await put(agent, one(name), tmp_path / "goal")
    assert os.listdir(tmp_path) == ["goal"]
    assert os.listdir(tmp_path / "goal") == []


async def test_an_absolute_name_counts_from_the_folder(agent, tmp_path: Path) -> None:
    await put(agent, one("/etc/x"), tmp_path / "goal")
    assert (tmp_path / "goal" / "etc" / "x").read_text() == "x"
    assert stat.S_IMODE((tmp_path / "goal" / "etc").stat().st_mode) == 0o755


async def test_what_no_tree_has_is_skipped_and_a_name_of_nothing_is_an_error(agent, tmp_path: Path) -> None:
    assert (await put(agent, one("null", kind=tarfile.CHRTYPE), tmp_path / "goal")).skipped == ("null",)
    with pytest.raises(GuestFileError):
        await put(agent, one("again", kind=tarfile.LNKTYPE, target="none"), tmp_path / "goal")
    with pytest.raises(ConfigError, match="no name inside"):
        await put(agent, one("again", kind=tarfile.LNKTYPE, target="../secret"), tmp_path / "goal")
    assert os.listdir(tmp_path / "goal") == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda tar: b"",
        lambda tar: b"no tar at all" * 100,
        lambda tar: tar[: tar.index(b"B" * 1000) + 500],  # in a file
        lambda tar: tar[: tar.index(b"B" * 1000)],  # behind a header
        lambda tar: tar[: tar.index(b"B" * 1000) - 100],  # in a header
        lambda tar: tar[: tar.index(b"B" * 1000) - 512],  # where a member could end it
        lambda tar: tar[: tar.index(b"B" * 1000) - 512] + b"?" * 10_240,
    ],
)
async def test_a_tar_that_is_not_whole_is_named_and_no_half_file_is_there(agent, tmp_path: Path, damage) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"A" * 1000)
    (source / "b").write_bytes(b"B" * 100_000)
    tar = subprocess.run(["tar", "-C", source, "-c", "a", "b"], check=True, capture_output=True).stdout
    with pytest.raises(ConfigError, match="no whole tar") as caught:
        await put(agent, damage(tar), tmp_path / "goal")
    assert caught.value.arrived is not None
    assert set(os.listdir(tmp_path / "goal")) <= {"a"}
    assert len(os.listdir(tmp_path / "goal")) >= caught.value.arrived.files


def long_name(times: int) -> bytes:
    """As many headers that tell a longer name for what follows."""
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 2
    return (head.tobuf(tarfile.USTAR_FORMAT) + b"x".ljust(512, b"\0")) * times


def large_header() -> bytes:
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    return gzip.compress(head.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 22), mtime=0)


def endless_map() -> bytes:
    """A file of which GNU tar's map of holes (version 1.0) has numbers without end, in a small compressed tar."""
    told = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "10"}
    content = b"1000000000\n" + b"0\n" * (8 << 20)
    return gzip.compress(one("x", content, told=told), mtime=0)


def old_map(*, blocks: int) -> bytes:
    """A file with as many more blocks of holes as GNU tar's old format lets follow, and no end of them."""
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # more follow
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = bytearray(512)
    more[504] = 1
    return gzip.compress(bytes(header) + bytes(more) * blocks, mtime=0)


@pytest.mark.parametrize(
    "tar",
    [
        b"\x1f\x8b\x08",
        b"\x1f\x8b\x08\x04",
        one("x", told={"mtime": "inf"}),
        one("x", told={"mtime": "1e300"}),
        one("x", told={"size": "-5"}),
        one("x", told={"GNU.sparse.map": "-5,3", "GNU.sparse.size": "10"}),
        one("x", told={"GNU.sparse.map": f"{2**63},3", "GNU.sparse.size": "10"}),
        one("x", told={"GNU.sparse.map": "0,1", "GNU.sparse.size": "-3"}),
        long_name(2000) + one("x"),
        large_header(),
        endless_map(),
        old_map(blocks=1),
    ],
)
async def test_a_tar_that_makes_no_sense_is_named(tar: bytes) -> None:
    with piped(tar) as fd, closing(TarPacking(fd)) as packing, pytest.raises(ConfigError, match="no whole tar"):
        while (await packing.next_batch()).has_any:
            pass


@pytest.mark.parametrize("tar", [large_header(), endless_map(), old_map(blocks=1 << 14), long_name(900) * 3])
async def test_what_a_tar_says_of_one_file_is_bounded(tar: bytes) -> None:
    """A small compressed tar would take all the memory there is."""
    with piped(tar) as fd, closing(TarPacking(fd)) as packing, pytest.raises(ConfigError, match="no whole tar"):
        tracemalloc.start()
        try:
            while (await packing.next_batch()).has_any:
                pass
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert most < 64 << 20


@pytest.mark.parametrize("make", [gzip.compress, bz2.compress, lzma.compress])
async def test_of_a_tar_that_was_made_smaller_there_is_a_piece_at_a_time(make) -> None:
    """All that 64 KiB hold, 32 MB here, was there at once, and its rest was copied with each piece that was taken."""
    tar = make(one("x", bytes(32 << 20)))
    assert len(tar) < 1 << 16
    count = 0
    with piped(tar) as fd, closing(TarPacking(fd)) as packing:
        tracemalloc.start()
        try:
            while (batch := await packing.next_batch()).has_any:
                count += len(batch.data)
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert count > 0
    assert most < 16 << 20  # xz itself has 8 MiB


@pytest.mark.parametrize("make", [gzip.compress, bz2.compress, lzma.compress])
async def test_what_was_made_smaller_and_is_damaged_or_cut_off_is_named(make) -> None:
    tar = make(one("x", os.urandom(300_000)))
    for damaged in (tar[:200_000], tar[:12], tar[:100] + b"damage" * 20 + tar[220:]):
        with piped(damaged) as fd, closing(TarPacking(fd)) as packing, pytest.raises(ConfigError, match="no whole tar"):
            while (await packing.next_batch()).has_any:
                pass


async def test_one_who_waits_for_a_tar_that_does_not_come_can_leave(agent, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(DeadlineExceeded):
            await agent.put(TarPacking(reading), str(tmp_path), timeout_s=0.1)
        waiting = asyncio.ensure_future(agent.put(TarPacking(reading), str(tmp_path)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, LIMIT_S)
    finally:
        os.close(writing)
        os.close(reading)


def file(name: str, size: int, *pieces: bytes, target: bytes = b"") -> bytes:
    return encode_entry(Entry("file", name.encode(), 0o4755, 7, 1, 2, size, target)) + b"".join(pieces)


def folder(*inside: bytes) -> bytes:
    return encode_entry(Entry("dir", b"r", 0o755, 7, 1, 2, 0)) + b"".join(inside) + encode_up()


def link(name: str, target: str, kind="link") -> bytes:
    return encode_entry(Entry(kind, name.encode(), 0o777, 7, 1, 2, 0, target.encode()))


@pytest.mark.parametrize(
    ("tree", "error", "says"),
    [
        (folder(link("a", "/etc/passwd")), HostError, "leads out"),
        (folder(link("a", "../../x")), HostError, "leads out"),
        (folder(link("a", "b", "hard")), ProtocolError, "did not come"),
        (folder(file("a", 3, encode_piece(0, b"abcd"))), ProtocolError, "longer"),
        (folder(file("a", 2**60, encode_piece(2**60, b""))), LimitExceeded, "gave more"),
        (folder(file("a", 0, encode_piece(2**40, b"x"))), HostError, "no size"),
    ],
)
async def test_a_tree_that_a_guest_made_up_is_no_tar(tmp_path: Path, tree: bytes, error, says: str) -> None:
    with (tmp_path / "tar").open("wb") as into:
        sink = TarUnpacking(into.fileno(), prefix="it", operation="copying", max_bytes=1 << 20)
        with pytest.raises(error, match=says):
            await sink.take(tree)
    assert (tmp_path / "tar").stat().st_size < 1 << 20


async def test_rights_that_a_guest_lends_do_not_come(tmp_path: Path) -> None:
    tree = folder(file("a", 4, encode_piece(0, b"ab"), encode_piece(2, b""), target=SHARED), link("b", "a", "hard"))
    for archive, mode, uid in ((False, 0o755, os.geteuid()), (True, 0o4755, 1)):
        with (tmp_path / "tar").open("wb") as into:
            sink = TarUnpacking(into.fileno(), prefix=".", operation="copying", archive=archive)
            await sink.take(tree)
            await sink.finish(3, 2)
        with tarfile.open(tmp_path / "tar") as tar:
            a, b = tar.getmember("./a"), tar.getmember("./b")
            assert (a.mode, a.uid, b.linkname) == (mode, uid, "./a")
            content = tar.extractfile(a)
            assert content is not None
            assert content.read() == b"ab\0\0"  # it has become shorter meanwhile


async def test_a_tree_comes_back_from_a_tar_of_many_files_with_flat_memory(agent, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for at in range(20):
        (source / str(at)).mkdir(parents=True)
        for each in range(50):
            (source / str(at) / str(each)).write_bytes(b"%d" % each * 100)
    await put(agent, tar_of(source), tmp_path / "goal")
    await agent.get(str(tmp_path / "goal"), place(tmp_path / "back"))
    assert describe(tmp_path / "back") == describe(tmp_path / "goal")
    assert len(list((tmp_path / "back").rglob("*"))) == 1020
