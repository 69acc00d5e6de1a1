"""The tree: what comes from a tar, links, hard links, and the archive made of it."""

from __future__ import annotations

import io
import stat
import tarfile

import pytest

from tests.unit.image.archive import parse
from vmfork.image.tree import Tree


def make_tar(*members: tuple[str, bytes, dict[str, object]]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, body, attributes in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(body))
    file.seek(0)
    return file


def read_tree(file: io.BytesIO) -> Tree:
    tree = Tree(file)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            tree.add_member(member.name, member)
    return tree


def archive(tree: Tree) -> dict[str, tuple[dict[str, int], bytes]]:
    file = io.BytesIO()
    tree.write(file, lambda _fraction: None)
    return {name: (fields, body) for name, fields, body in parse(file.getvalue())}


def test_a_tar_becomes_an_archive_with_its_owners():
    tree = read_tree(
        make_tar(
            ("etc", b"", {"type": tarfile.DIRTYPE, "mode": 0o750, "uid": 1000}),
            ("etc/motd", b"hello", {"mode": 0o640, "uid": 1000, "gid": 42, "mtime": 7}),
            ("bin", b"", {"type": tarfile.SYMTYPE, "linkname": "usr/bin"}),
            ("dev/null", b"", {"type": tarfile.CHRTYPE}),
        )
    )
    entries = archive(tree)
    assert list(entries) == ["bin", "etc", "etc/motd"]
    assert entries["bin"][1] == b"usr/bin"
    fields, body = entries["etc/motd"]
    assert (fields["mode"], fields["mtime"], body) == (stat.S_IFREG | 0o640, 7, b"hello")
    assert (fields["uid"], fields["gid"]) == (1000, 42)
    assert (entries["bin"][0]["uid"], entries["etc"][0]["uid"]) == (0, 1000)


def test_hard_links_share_an_inode_and_the_last_has_the_body():
    link = {"type": tarfile.LNKTYPE, "linkname": "b"}
    tree = read_tree(make_tar(("b", b"body", {}), ("a", b"", link), ("c", b"", link), ("d", b"other", {})))
    entries = archive(tree)
    assert [entries[name][1] for name in "abc"] == [b"", b"", b"body"]
    assert len({entries[name][0]["ino"] for name in "abc"}) == 1
    assert [entries[name][0]["nlink"] for name in "abcd"] == [3, 3, 3, 1]
    assert tree.measure() == 2 * 4096


def test_each_name_of_a_symbolic_link_has_the_target():
    link, hard = {"type": tarfile.SYMTYPE, "linkname": "x"}, {"type": tarfile.LNKTYPE, "linkname": "b"}
    entries = archive(read_tree(make_tar(("b", b"", link), ("a", b"", hard), ("c", b"", hard))))
    assert [entries[name][1] for name in "abc"] == [b"x"] * 3
    assert [entries[name][0]["nlink"] for name in "abc"] == [1] * 3


@pytest.mark.parametrize(
    ("kept", "reported", "in_force"),
    [(0o600, 0o400, 0o400), (0o755, 0o555, 0o555), (0o644, 0, 0o644), (0o600, 0, 0o600), (0o640, 0o604, 0o640)],
)
def test_fakeroot_is_believed_about_what_it_gives_the_owner_alone(kept, reported, in_force):
    tree = Tree(io.BytesIO())
    tree.add_file("a", b"x", mode=kept)
    tree.own("a", mode=reported, uid=0, gid=42)
    fields, _ = archive(tree)["a"]
    assert (stat.S_IMODE(fields["mode"]), fields["gid"]) == (in_force, 42)


def test_parents_are_made_and_come_first():
    tree = Tree(io.BytesIO())
    tree.add_file("a/b/c", b"x")
    tree.add_folder("a/b/d", 0o1777)
    assert list(archive(tree)) == ["a", "a/b", "a/b/c", "a/b/d"]


def test_links_are_followed():
    tree = Tree(io.BytesIO())
    tree.add_file("usr/bin/dash", b"x")
    tree.add_link("bin", "usr/bin")
    tree.add_link("usr/bin/sh", "dash")
    tree.add_link("usr/up", "../bin")
    tree.add_link("loop", "loop")
    assert tree.resolve("/bin/sh") == "usr/bin/dash"
    assert tree.resolve("usr/up/sh") == "usr/bin/dash"
    assert tree.resolve("/bin/none") is None
    assert tree.resolve("loop") is None


def test_check_can_stop_the_writing():
    class StopError(Exception):
        pass

    def stop(_fraction: float) -> None:
        raise StopError

    tree = Tree(io.BytesIO())
    tree.add_file("a", b"x")
    try:
        tree.write(io.BytesIO(), stop)
    except StopError:
        return
    raise AssertionError
