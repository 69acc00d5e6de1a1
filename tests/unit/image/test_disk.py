"""A tree as the file of a disk: what is in it, that it is the same each time, and what is told where it is not made."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager

import pytest

from tests.unit.image.test_tree import make_tar, read_tree
from vmfork.errors import HostError, ImageError
from vmfork.image import disk, recipe
from vmfork.image.tree import Slice

MEMBERS = (
    ("etc", b"", {"type": tarfile.DIRTYPE, "mode": 0o750, "uid": 1000, "mtime": 7}),
    ("etc/motd", b"hello" * 5000, {"mode": 0o4640, "uid": 1000, "gid": 42, "mtime": 7}),
    ("etc/same", b"", {"type": tarfile.LNKTYPE, "linkname": "etc/motd"}),
    ("etc/" + "long" * 40, b"x", {"mode": 0o644, "mtime": 7}),
    ("etc/n\udcff", b"", {"mode": 0o644, "mtime": 7}),
    ("bin", b"", {"type": tarfile.SYMTYPE, "linkname": "usr/bin", "mtime": 7}),
)


@contextmanager
def laid(*members):
    """The tree of a tar that lies in a file."""
    with tempfile.TemporaryFile() as file:
        file.write(make_tar(*members).getvalue())
        file.seek(0)
        yield read_tree(file)


def make(path):
    with laid(*MEMBERS) as tree:
        disk.write_disk(tree, path, lambda _fraction: None)
    return path


class Kept(bytearray):
    """What a tree was written to."""

    def write(self, data: bytes) -> None:
        self.extend(data)

    def copy(self, source: io.BytesIO, part: Slice) -> None:
        source.seek(part.offset)
        self.extend(source.read(part.size))


@pytest.mark.needs("sqfstar")
def test_it_holds_the_tree_with_owners_modes_and_links(tmp_path):
    path = make(tmp_path / "disk")
    listed = subprocess.run(["unsquashfs", "-lln", path], capture_output=True, check=True).stdout.decode(
        "utf-8", "surrogateescape"
    )
    lines = {line.split("squashfs-root")[1]: line.split() for line in listed.splitlines() if "squashfs-root" in line}
    assert lines[""][:2] == ["drwxr-xr-x", "0/0"]
    assert lines["/etc"][:2] == ["drwxr-x---", "1000/0"]
    assert lines["/etc/motd"][:3] == ["-rwSr-----", "1000/42", "25000"]
    assert lines["/etc/same"][:3] == lines["/etc/motd"][:3]
    assert {"/etc/" + "long" * 40, "/etc/n\udcff", "/bin -> usr/bin"} <= lines.keys()
    body = subprocess.run(["unsquashfs", "-cat", path, "etc/same"], capture_output=True, check=True).stdout
    assert body == b"hello" * 5000
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.needs("sqfstar")
def test_the_same_tree_is_the_same_file(tmp_path):
    assert make(tmp_path / "one").read_bytes() == make(tmp_path / "two").read_bytes()


@pytest.mark.needs("sqfstar")
@pytest.mark.parametrize("last", [0, 20, 25, 26, 27, 28, 36])
def test_the_root_has_a_date_of_its_own_wherever_its_inode_lies(tmp_path, last):
    """With so many links it lies at the end of 8 KiB of inodes, with its date on both sides of that at 25 to 27."""
    lengths = (*[57] * 100, last) if last else ()
    links = [(f"{at:03}", b"", {"type": tarfile.SYMTYPE, "linkname": "x" * n}) for at, n in enumerate(lengths)]
    path = tmp_path / "disk"
    with laid(*MEMBERS[:1], *links) as tree:
        disk.write_disk(tree, path, lambda _fraction: None)
    listed = subprocess.run(
        ["unsquashfs", "-lln", path], capture_output=True, check=True, env={**os.environ, "TZ": "UTC"}
    ).stdout.decode()
    dates = {line.split()[5]: line.split()[3:5] for line in listed.splitlines() if "squashfs-root" in line}
    assert dates["squashfs-root"] == ["2025-08-09", "00:00"]
    assert len(dates) == 2 + len(links)
    assert {*map(tuple, dates.values())} == {("2025-08-09", "00:00"), ("1970-01-01", "00:00")}


@pytest.mark.needs("sqfstar")
def test_a_disk_that_is_full_is_told(tmp_path):
    (tmp_path / "disk").symlink_to("/dev/full")
    with pytest.raises(ImageError, match="sqfstar failed") as caught:
        make(tmp_path / "disk")
    assert caught.value.log


@pytest.mark.needs("sqfstar")
def test_one_that_ends_while_it_is_written_to_is_told(tmp_path):
    """More than a pipe takes: whoever writes meets its end."""
    members = ((str(number), bytes([number]) * 3_000_000, {}) for number in range(4))
    (tmp_path / "disk").symlink_to("/dev/full")
    with laid(*members) as large, pytest.raises(ImageError, match="sqfstar failed"):
        disk.write_disk(large, tmp_path / "disk", lambda _fraction: None)


@pytest.mark.needs("sqfstar")
def test_who_is_stopped_has_ended_the_program(tmp_path):
    class Stopped(Exception):
        pass

    def stop(fraction: float) -> None:
        if fraction:
            raise Stopped

    started = []
    real = subprocess.Popen

    class Watched(real):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch, laid(*MEMBERS) as tree:
        patch.setattr(subprocess, "Popen", Watched)
        with pytest.raises(Stopped):
            disk.write_disk(tree, tmp_path / "disk", stop)
    assert [process.poll() is not None for process in started] == [True]


def test_without_the_program_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        disk.find_sqfstar()
    assert "squashfs-tools" in caught.value.hint
    assert "memory" in caught.value.hint


def test_a_tar_of_a_tree_is_read_as_the_tree(tmp_path):
    tree, kept = read_tree(make_tar(*MEMBERS)), Kept()
    tree.write_tar(kept, lambda _fraction: None)
    again = read_tree(io.BytesIO(kept))
    assert [*again] == [*tree]
    for path in tree:
        have, want = again.get(path), tree.get(path)
        assert (have.mode, have.uid, have.gid, have.mtime, have.size) == (
            *(want.mode, want.uid, want.gid, want.mtime, want.size),
        )
        assert bool(have.inode) == bool(want.inode)


def test_files_are_not_packed_at_their_ends(tmp_path):
    argv = disk.build_argv("sqfstar", tmp_path / "disk")
    assert {"-no-fragments", "-noD", "-noI", "-exit-on-error"} <= set(argv)
    assert argv[argv.index("-mkfs-time") + 1] == str(recipe.EPOCH)
