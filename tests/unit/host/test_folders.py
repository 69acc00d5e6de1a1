"""Folders are ours alone; files and links appear whole or not at all, also when the writer is killed."""

from __future__ import annotations

import os
import signal
import stat
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.children import exit_code_of, fork_child
from vmfork.errors import HostError
from vmfork.host import folders
from vmfork.host.folders import link_atomically, make_private, read_file, tail_of, write_whole

as_root = pytest.mark.needs("root")


def mode(path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_private_folder_is_made_with_its_parents_under_any_umask(tmp_path):
    before = os.umask(0)
    try:
        made = make_private(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    assert (mode(made), mode(made.parent)) == (0o700, 0o700)
    assert make_private(made) == made


def test_a_folder_that_was_open_to_others_is_closed_to_them(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    make_private(folder)
    assert mode(folder) == 0o700


def test_a_record_may_have_as_many_bytes_as_are_read(tmp_path):
    path = tmp_path / "record"
    path.write_bytes(b"12345678")
    assert read_file(path, limit=8) == b"12345678"
    with pytest.raises(OSError, match="it has 8 bytes, 7 at most are read"):
        read_file(path, limit=7)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/etc/passwd", path)])
def test_a_record_is_a_regular_file(tmp_path, make):
    make(tmp_path / "record")
    with pytest.raises(OSError):  # noqa: PT011 - each kind has its own
        read_file(tmp_path / "record")


def test_a_link_is_not_a_private_folder(tmp_path):
    (tmp_path / "real").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(HostError, match="is a link"):
        make_private(tmp_path / "link")


@pytest.mark.parametrize("place", ["file", "file/below", "dangling"])
def test_what_is_no_folder_is_refused(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(HostError, match="cannot use the folder") as caught:
        make_private(tmp_path / place)
    assert "VMFORK_HOME" in caught.value.hint


@as_root
def test_a_folder_of_another_user_is_refused(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 1234, 1234)
    with pytest.raises(HostError, match="belongs to another user"):
        make_private(folder)


@as_root
@pytest.mark.parametrize("through_link", [False, True])
def test_a_folder_in_one_of_another_user_is_refused_and_not_made(tmp_path, through_link):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 1234, 1234)
    (tmp_path / "link").symlink_to(theirs)
    with pytest.raises(HostError, match="belongs to another user"):
        make_private((tmp_path / "link" if through_link else theirs) / "mine")
    assert list(theirs.iterdir()) == []


@as_root
def test_a_folder_behind_a_link_of_another_user_is_refused(tmp_path):
    """Its target is ours today; who owns the link decides what it is tomorrow."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "link").symlink_to("ours")
    os.lchown(tmp_path / "link", 1234, 1234)
    with pytest.raises(HostError, match="belongs to another user"):
        make_private(tmp_path / "link" / "mine")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(first=st.binary(), second=st.binary())
def test_a_file_is_replaced_wholly_and_leaves_nothing_beside_it(tmp_path, first, second):
    path = tmp_path / "file"
    for data in (first, second):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert mode(path) == 0o600


def test_a_reader_of_the_old_file_keeps_it(tmp_path):
    write_whole(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as reader:
        write_whole(tmp_path / "file", b"new", mode=0o644)
        assert reader.read() == b"old"
    assert mode(tmp_path / "file") == 0o644


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "file", b"new")
    with pytest.raises(IsADirectoryError):
        link_atomically(tmp_path / "file", "target")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def die_before_line(number: int) -> None:
    """From now on this process lives until the line of folders.py with that number, counted from 0."""
    left = number

    def trace_lines(frame, event, arg):
        nonlocal left
        if event == "line":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace_lines

    sys.settrace(lambda frame, event, arg: trace_lines if frame.f_code.co_filename == folders.__file__ else None)


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda path, what: write_whole(path, what.encode() * 100_000), lambda path: path.read_text()[:3]),
        (link_atomically, os.readlink),
    ],
    ids=["write_whole", "link_atomically"],
)
def test_a_writer_that_is_killed_leaves_the_old_or_the_new(tmp_path, write, read):
    path = tmp_path / "file"
    outcomes = []
    for number in range(100):
        write(path, "old")

        def rewrite(number=number):
            die_before_line(number)
            write(path, "new")

        code = exit_code_of(fork_child(rewrite))
        outcomes.append(read(path))
        others = [entry.name for entry in tmp_path.iterdir() if entry != path]
        assert all(name.startswith(".file.") for name in others), "a sweep knows them by their first dot"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert set(outcomes[:-1]) <= {"old", "new"}
    assert (outcomes[0], outcomes[-1]) == ("old", "new")
    assert len(outcomes) > 4


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_whole(path, contents[0])

    def write_on():
        while True:
            for data in contents:
                write_whole(path, data)

    pid = fork_child(write_on)
    seen = set()
    while len(seen) < 2:
        data = path.read_bytes()
        assert data in contents
        seen.add(data)
    os.kill(pid, signal.SIGKILL)
    assert exit_code_of(pid) == -signal.SIGKILL


def test_the_tail_of_a_file_is_its_end(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    assert tail_of(path) == "one\ntwo\n"
    assert tail_of(path, limit=4) == "two\n"
    assert tail_of(path, limit=0) == ""


def test_the_tail_of_a_huge_file_is_read_without_the_rest(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"the end")
    assert tail_of(path, limit=7) == "the end"


def test_a_tail_of_nothing_is_empty(tmp_path):
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", tmp_path / "missing", tmp_path, tmp_path / "empty" / "below"):
        assert tail_of(path) == ""


@given(data=st.binary(max_size=200), limit=st.integers(0, 50))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_the_tail_of_binary_data_is_text(tmp_path, data, limit):
    (tmp_path / "log").write_bytes(data)
    assert tail_of(tmp_path / "log", limit=limit) == data[max(0, len(data) - limit) :].decode(errors="replace")
