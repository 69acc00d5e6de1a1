"""What a guest sends stays in the copy, whatever it is, and takes no more than was allowed."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from vmfork.errors import ConfigError, HostError, LimitExceeded, ProtocolError
from vmfork.host.unpacking import Place, Unpacking
from vmfork.wire.tree import SHARED, Entry, encode_entry, encode_piece, encode_up

if TYPE_CHECKING:
    from pathlib import Path

UP = encode_up()


def entry(kind: str, name: str, *, mode: int = 0o755, target: str = "", mtime_ns: int = 7) -> bytes:
    return encode_entry(Entry(kind, name.encode(), mode, mtime_ns, 0, 0, 0, target.encode()))  # type: ignore[arg-type]


def folder(name: str, *inside: bytes, mode: int = 0o755) -> bytes:
    return entry("dir", name, mode=mode) + b"".join(inside) + UP


def file(name: str, content: bytes = b"x", *, mode: int = 0o644, target: str = "") -> bytes:
    pieces = encode_piece(0, content) if content else b""
    return entry("file", name, mode=mode, target=target) + pieces + encode_piece(len(content), b"")


def unpack(tree: bytes, path: Path | str, **options) -> Unpacking:
    """The tree was made at `path`; what it raised is raised, and nothing half made is left."""
    unpacking = Unpacking(Place(path=str(path), name="asked-for", operation="copying", **options))
    try:
        unpacking.open_place()
        unpacking.feed(tree, threading.Event())
    finally:
        unpacking.close()
    return unpacking


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What lies beside the copy, and must stay as it is."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "out").mkdir()
    return tmp_path


def check_outside(outside: Path) -> None:
    assert sorted(path.name for path in outside.iterdir()) == ["out", "secret"]
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("name", ["..", ".", "../x", "/etc/x", "a/b", "", "a\0b"])
@pytest.mark.parametrize("make", [file, folder])
def test_a_name_that_leads_elsewhere_is_a_protocol_error(outside: Path, make, name: str) -> None:
    with pytest.raises(ProtocolError):
        unpack(folder("r", make(name)), outside / "out")
    check_outside(outside)


def test_no_link_is_followed_be_it_the_guests_or_ours(outside: Path) -> None:
    out = outside / "out"
    for link in (entry("link", "a", target="."), b""):
        (out / "b").unlink(missing_ok=True)
        (out / "b").symlink_to("..")
        with pytest.raises(HostError, match="no folder"):
            unpack(folder("r", link, folder("b", file("secret", b"mine"))), out, outside_links=True)
        with pytest.raises(HostError, match="no folder"):
            unpack(folder("r", entry("link", "c", target=".."), folder("c", file("secret"))), out, outside_links=True)
        check_outside(outside)


def test_a_link_in_the_place_of_a_file_is_replaced_not_written_through(outside: Path) -> None:
    (outside / "out" / "f").symlink_to("../secret")
    unpack(folder("r", file("f", b"new")), outside / "out")
    assert (outside / "out" / "f").read_bytes() == b"new"
    assert not (outside / "out" / "f").is_symlink()
    check_outside(outside)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "..", "../secret", "sub/../../secret", "a/..", "./..", "../out/../secret", ""]
)
def test_a_link_that_may_lead_out_is_refused_unless_it_was_asked_for(outside: Path, target: str) -> None:
    tree = folder("r", entry("link", "a", target=target))
    with pytest.raises(HostError, match="leads out"):
        unpack(tree, outside / "out")
    assert [*(outside / "out").iterdir()] == []
    if target:
        unpack(tree, outside / "out", outside_links=True)
        assert os.readlink(outside / "out" / "a") == target
    check_outside(outside)


def test_links_that_stay_in_the_copy_are_kept(tmp_path: Path) -> None:
    tree = folder("r", entry("link", "a", target="b/c//d"), folder("b", entry("link", "up", target="../a")))
    unpack(tree, tmp_path / "new")
    assert os.readlink(tmp_path / "new" / "a") == "b/c//d"
    assert os.readlink(tmp_path / "new" / "b" / "up") == "../a"
    assert (tmp_path / "new" / "a").lstat().st_mtime_ns == 7


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "mine", "a", "dir/../a", ".", "", "one/two"])
def test_only_a_file_of_this_copy_gets_another_name(outside: Path, target: str) -> None:
    """A file of ours would get a name that the guest chose, and one outside would be in the copy."""
    (outside / "out" / "mine").write_text("mine")
    with pytest.raises(ProtocolError):
        unpack(folder("r", file("a"), entry("hard", "b", target=target)), outside / "out")
    assert not (outside / "out" / "b").exists()
    check_outside(outside)


def test_a_link_cannot_be_moved_up_by_another_name_of_it(outside: Path) -> None:
    """`..` stays inside one folder down, and would lead out as a hard link further up."""
    down = folder("d", file("a", target=SHARED.decode()), entry("link", "a", target=".."))
    with pytest.raises(ProtocolError, match="not the file"):
        unpack(folder("r", down, entry("hard", "b", target="d/a")), outside / "out")
    assert not (outside / "out" / "b").is_symlink()
    check_outside(outside)


def test_names_of_one_file_stay_names_of_one_file(tmp_path: Path) -> None:
    tree = folder("r", folder("d", file("a", target=SHARED.decode())), entry("hard", "b", target="d/a"))
    for _ in range(2):
        made = unpack(tree, tmp_path / "new")
        assert os.path.samefile(tmp_path / "new" / "b", tmp_path / "new" / "d" / "a")
        assert sorted(os.listdir(tmp_path / "new")) == ["b", "d"]
    assert (made.copied.files, made.copied.links) == (1, 1)


@pytest.mark.parametrize("archive", [False, True])
def test_nothing_lends_rights(tmp_path: Path, archive: bool) -> None:
    if archive and os.geteuid() != 0:
        archive = False
    unpack(folder("r", file("f", mode=0o6755), folder("d", mode=0o7777)), tmp_path / "new", archive=archive)
    modes = [stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) for name in "fd"]
    assert modes == [0o755, 0o1777 if archive else 0o777]


@pytest.mark.parametrize("kind", ["link", "hard", "other"])
def test_a_root_is_a_file_or_a_folder(outside: Path, kind: str) -> None:
    with pytest.raises(ProtocolError):
        unpack(entry(kind, "r", target="secret"), outside / "out" / "new", outside_links=True)
    check_outside(outside)


def test_the_root_has_the_name_that_was_asked_for_whatever_the_guest_calls_it(outside: Path) -> None:
    unpack(file(".bashrc", b"evil"), outside / "out")
    assert [path.name for path in (outside / "out").iterdir()] == ["asked-for"]
    unpack(file(".bashrc", b"evil"), outside / "out" / "f")
    unpack(folder(".ssh", file("f")), outside / "out" / "d")
    assert sorted(os.listdir(outside / "out")) == ["asked-for", "d", "f"]


def test_a_device_is_named_and_never_made(tmp_path: Path) -> None:
    made = unpack(folder("r", entry("other", "null"), file("f")), tmp_path / "new")
    assert os.listdir(tmp_path / "new") == ["f"]
    assert made.copied.skipped == ("null",)


def test_content_beyond_the_limit_is_refused_and_so_are_names_without_content(tmp_path: Path) -> None:
    with pytest.raises(LimitExceeded, match="more than 20000 bytes"):
        unpack(folder("r", file("f", b"x" * 10_000), file("g", b"x" * 10_000)), tmp_path / "new", max_bytes=20_000)
    assert os.listdir(tmp_path / "new") == ["f"]
    with pytest.raises(LimitExceeded):
        unpack(folder("r", *(file(str(i), b"") for i in range(10))), tmp_path / "many", max_bytes=20_000)
    assert len(os.listdir(tmp_path / "many")) == 3
    unpack(folder("r", file("f", b"x" * 11_808)), tmp_path / "just", max_bytes=20_000)


def test_a_hole_takes_no_room_however_large(tmp_path: Path) -> None:
    unpack(
        entry("file", "f") + encode_piece(1 << 32, b"x") + encode_piece(1 << 33, b""), tmp_path / "f", max_bytes=9000
    )
    st = (tmp_path / "f").stat()
    assert (st.st_size, st.st_blocks * 512 < 1 << 20) == (1 << 33, True)


def test_what_breaks_off_leaves_no_half_file_and_its_folders_as_they_are_to_be(tmp_path: Path) -> None:
    tree = folder("r", folder("d", file("f", b"x" * 100), mode=0o750))
    cut = tree.index(b"x" * 100) + 50
    made = unpack(tree[:cut], tmp_path / "new")
    assert os.listdir(tmp_path / "new" / "d") == []
    assert stat.S_IMODE((tmp_path / "new" / "d").stat().st_mode) == 0o750
    assert (made.copied.files, made.at) == (0, "d/f")
    with pytest.raises(ProtocolError):
        made.check_whole(3, 50)


def test_what_was_there_stays_when_its_successor_breaks_off(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    unpack(file("f", b"x" * 100)[:-20], tmp_path / "f")
    assert (tmp_path / "f").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_and_a_file_do_not_take_each_others_place(tmp_path: Path) -> None:
    (tmp_path / "d" / "x").mkdir(parents=True)
    (tmp_path / "f").write_text("f")
    with pytest.raises(HostError, match="is a folder here"):
        unpack(folder("r", file("d")), tmp_path)
    with pytest.raises(HostError, match="no folder"):
        unpack(folder("r", folder("f")), tmp_path)
    with pytest.raises(HostError, match="there is no folder"):
        unpack(file("f"), f"{tmp_path}/none/")
    assert sorted(os.listdir(tmp_path)) == ["d", "f"]


def test_a_folder_that_is_here_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o700)
    unpack(folder("r", folder("d", file("f"), mode=0o777), mode=0o777), tmp_path)
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700


def test_a_place_in_no_folder_is_refused_by_name_unless_parents(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="local"):
        unpack(file("f"), tmp_path / "a" / "b")
    unpack(file("f"), tmp_path / "a" / "b", parents=True)
    assert (tmp_path / "a" / "b").read_bytes() == b"x"


def test_the_count_of_the_guest_must_be_ours(tmp_path: Path) -> None:
    made = unpack(folder("r", file("f"), entry("other", "o")), tmp_path / "new")
    made.check_whole(3, 1)
    for wrong in ((2, 1), (4, 1), (3, 0)):
        with pytest.raises(ProtocolError):
            made.check_whole(*wrong)


def place(path: Path | str, **options) -> Place:
    return Place(path=str(path), name="asked-for", operation="copying", **options)


@pytest.mark.parametrize("path", ["none/name", "none/", "secret/name"])
def test_a_link_alone_needs_a_folder_that_is_here(outside: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        place(f"{outside}/{path}").within_folder()
    check_outside(outside)


def test_a_link_alone_goes_where_its_folder_is_or_was_to_be_made(outside: Path) -> None:
    here = place(outside / "out" / "name").within_folder()
    assert (here.path, here.name) == (str(outside / "out"), "name")
    assert place(outside / "out").within_folder().name == "asked-for"
    made = place(outside / "out" / "a" / "b" / "name", parents=True).within_folder()
    assert (made.path, made.name) == (str(outside / "out" / "a" / "b"), "name")
    assert place(f"{outside}/out/a/c/", parents=True).within_folder().name == "asked-for"
    assert stat.S_IMODE((outside / "out" / "a").stat().st_mode) & 0o002 == 0
