"""What differs between the files of two guests, of what their agents and programs say."""

from __future__ import annotations

import pytest

from vmfork.difference.files import FileDifference, compare_files, find_roots
from vmfork.errors import ExecError
from vmfork.wire.message import DirEntry, ExecStatus


class Guest:
    """A guest as its agent shows it. `files` has of each path its entry, stamp and digest; `lacks` are programs."""

    def __init__(self, files, *, lacks=()) -> None:
        self.files, self.lacks, self.ran = files, lacks, []

    @property
    def agent(self):
        return self

    async def read_file(self, path, *, max_bytes) -> bytes:
        return b"none / tmpfs rw 0 0\nproc /proc proc rw 0 0\n"

    async def list_tree(self, root, *, timeout_s):
        return [DirEntry(path[1:], *entry[:3], 0) for path, (*entry, _, _) in self.files.items()]

    async def exec(self, command, **_):
        program, *arguments = command.argv
        if program in self.lacks:
            raise ExecError(program, 127, "not found")
        paths = arguments[arguments.index("--") + 1 :]
        self.ran.append((program, paths))
        said = ""
        for path in paths:
            _, _, _, stamp, digest = self.files[path]
            said += f"{stamp} {path}\0" if program == "stat" else f"{digest}  {path}\0"
        return ExecStatus("exit", 0, 0.0), said.encode(), b""


FILE = ("file", 0o644, 10, "7 1.5 0 0", "aa")


def changed(**parts):
    names = ("type", "mode", "size", "stamp", "digest")
    return tuple(parts.get(name, value) for name, value in zip(names, FILE, strict=True))


@pytest.mark.parametrize(
    ("other", "aspects"),
    [
        (FILE, ()),
        (changed(digest="bb"), ()),  # its stamp says that nobody touched it, and it is not looked at
        (changed(stamp="7 1.6 0 0"), ()),  # it was touched, and is the same
        (changed(stamp="7 1.6 0 0", digest="bb"), ("content",)),
        (changed(stamp="8 1.5 0 0", digest="bb"), ("content",)),
        (changed(size=11), ("content",)),
        (changed(mode=0o600, stamp="7 1.6 0 0"), ("mode",)),
        (changed(stamp="7 1.6 5 0"), ("owner",)),
        (changed(type="link"), ("type",)),
    ],
)
async def test_what_differs_is_told_by_aspects(other, aspects) -> None:
    found = await compare_files(Guest({"/a": FILE}), Guest({"/a": other}))
    assert [(each.where, each.aspects) for each in found] == ([("both", aspects)] if aspects else [])


async def test_what_one_has_alone_is_told_and_who_a_machine_is_is_not() -> None:
    ours = Guest({"/a": FILE, "/etc/hostname": FILE, "/run/vmfork/fork-id": FILE})
    theirs = Guest({"/b": FILE, "/etc/hostname": changed(stamp="9 9 0 0", digest="cc")})
    assert await compare_files(ours, theirs) == [
        FileDifference(path="/a", where="ours"),
        FileDifference(path="/b", where="theirs"),
    ]


async def test_only_what_may_differ_is_read() -> None:
    files = {f"/{number}": FILE for number in range(2500)}
    ours, theirs = Guest(files), Guest({**files, "/7": changed(stamp="7 2 0 0", digest="bb")})
    assert [each.path for each in await compare_files(ours, theirs)] == ["/7"]
    assert [(program, len(paths)) for program, paths in ours.ran] == [
        *[("stat", 1000)] * 2,
        ("stat", 500),
        ("sha256sum", 1),
    ]


@pytest.mark.parametrize(("lacks", "aspects"), [(["stat"], ["content"]), (["sha256sum"], ["unread"])])
async def test_without_its_programs_nothing_is_taken_for_the_same(lacks, aspects) -> None:
    other = changed(stamp="8 2 0 0", digest="bb")
    found = await compare_files(Guest({"/a": FILE}), Guest({"/a": other}, lacks=lacks))
    assert [list(each.aspects) for each in found] == [aspects]


def test_file_systems_that_hold_files_are_looked_through() -> None:
    mounts = "a / tmpfs rw 0 0\nb /proc proc rw\nc /run tmpfs\nd /a\\040b ext4 rw\ne /run sysfs rw\nodd\n"
    assert find_roots(mounts) == ["/", "/a b"]
