"""Layers are applied to a root as the image specification says; hostile ones are told."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from tests.images import Member, digest, folder, hard, link, make_layer
from tests.unit.container.conftest import apply_layers, list_tree, read_content
from vmfork.container.layer import Applying, Contents
from vmfork.container.limits import Budget, ImportLimits
from vmfork.container.root import Root
from vmfork.errors import ArtifactError
from vmfork.host import zstd


def file(name: str, body: str = "", **more: object) -> Member:
    return Member(name, body=(body or name).encode(), **more)  # type: ignore[arg-type]


def refused(*layers: object, limits: ImportLimits | None = None) -> str:
    with pytest.raises(ArtifactError) as told:
        apply_layers(*layers, limits=limits)  # type: ignore[arg-type]
    return told.value.reason


def test_what_a_layer_adds_takes_the_place_of_what_was_there():
    work = apply_layers([folder("a"), file("a/x", "old"), file("b")], [file("a/x", "new"), file("a/y")])
    assert list_tree(work) == {"a": "/", "a/x": "new", "a/y": "a/y", "b": "b"}


def test_a_whiteout_removes_what_is_below_and_all_in_it():
    work = apply_layers([folder("a"), folder("a/b"), file("a/b/c"), file("d")], [file("a/.wh.b"), file(".wh.d")])
    assert list_tree(work) == {"a": "/"}


def test_a_whiteout_of_nothing_changes_nothing():
    work = apply_layers([file("a")], [file(".wh.b"), file("no/such/.wh.c"), file("a2/.wh..wh..opq")])
    assert list_tree(work) == {"a": "a"}


def test_a_whiteout_removes_nothing_of_its_own_layer_in_either_order():
    below = [folder("a"), file("a/old"), file("x", "old")]
    for members in ([file(".wh.x"), file("x", "new")], [file("x", "new"), file(".wh.x")]):
        assert list_tree(apply_layers(below, members)) == {"a": "/", "a/old": "a/old", "x": "new"}
    work = apply_layers(below, [file("a/new"), file(".wh.a")])
    assert list_tree(work) == {"a": "/", "a/new": "a/new", "x": "old"}


def test_an_opaque_folder_keeps_what_its_own_layer_adds_in_either_order():
    below = [folder("a"), folder("a/b"), file("a/b/old"), file("a/old")]
    for members in (
        [file("a/.wh..wh..opq"), file("a/new"), file("a/b/new")],
        [file("a/new"), file("a/b/new"), file("a/.wh..wh..opq")],
    ):
        work = apply_layers(below, members)
        assert list_tree(work) == {"a": "/", "a/b": "/", "a/b/new": "a/b/new", "a/new": "a/new"}


def test_what_a_file_system_of_old_kept_for_itself_is_passed_over():
    assert list_tree(apply_layers([file("plnk")], [folder(".wh..wh.plnk"), file(".wh..wh.aufs")])) == {"plnk": "plnk"}


def test_a_folder_over_a_folder_keeps_its_entries_and_takes_the_new_mode():
    work = apply_layers([folder("a", 0o755), file("a/x")], [folder("a", 0o1777, uid=7, gid=8, mtime=9)])
    inode = work.root.find(["a"])
    assert inode is not None
    assert (inode.mode & 0o7777, inode.uid, inode.gid, inode.mtime) == (0o1777, 7, 8, 9)
    assert list_tree(work) == {"a": "/", "a/x": "a/x"}


def test_a_file_over_a_folder_and_a_folder_over_a_link_replace_it():
    work = apply_layers([folder("a"), file("a/x"), folder("t"), link("l", "t")], [file("a", "now"), folder("l")])
    assert list_tree(work) == {"a": "now", "l": "/", "t": "/"}


def test_paths_lead_through_links_of_lower_layers_and_never_out():
    work = apply_layers(
        [folder("usr"), folder("usr/lib"), link("lib", "usr/lib"), link("up", "../../../../usr"), link("abs", "/usr")],
        [file("lib/a"), file("up/b"), file("abs/c"), link("away", "../../etc"), file("away/d")],
    )
    found = list_tree(work)
    assert sorted(path for path in found if path.startswith(("usr/", "etc/"))) == [
        "etc/d", "usr/b", "usr/c", "usr/lib", "usr/lib/a",
    ]  # fmt: skip


def test_names_are_one_file_until_one_of_them_is_replaced():
    work = apply_layers([file("a", "one"), hard("b", "a"), hard("c", "/b")], [file("b", "two")])
    a, b, c = (work.root.find([name]) for name in "abc")
    assert a is c is not b
    assert list_tree(work) == {"a": "one", "b": "two", "c": "one"}


def test_a_hard_link_to_a_link_is_one_more_name_of_the_link():
    assert list_tree(apply_layers([link("l", "nowhere"), hard("m", "l")])) == {"l": "-> nowhere", "m": "-> nowhere"}


def test_owners_modes_times_devices_and_attributes_are_kept():
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
    work = apply_layers(
        [
            file(
                "ping",
                mode=0o4755,
                uid=3,
                gid=70_000,
                xattrs=(("security.capability", capability), ("user.a", b"\xff")),
            ),
            Member("dev/null", "char", device=(1, 3), mode=0o666),
            Member("dev/sda", "block", device=(8, 0), mode=0o660),
            Member("fifo", "pipe", mode=0o600),
            file("old", mtime=-5, xattrs=(("security.selinux", b"x"), ("trusted.overlay.opaque", b"y"))),
        ]
    )
    ping, null, sda, fifo, old = (work.root.find(p.split("/")) for p in ("ping", "dev/null", "dev/sda", "fifo", "old"))
    assert ping
    assert null
    assert sda
    assert fifo
    assert old
    assert (ping.mode, ping.uid, ping.gid) == (0o104755, 3, 70_000)
    assert ping.xattrs == {"security.capability": capability, "user.a": b"\xff"}
    assert (null.mode, null.device, sda.mode, sda.device) == (0o020666, (1, 3), 0o060660, (8, 0))
    assert fifo.mode == 0o010600
    assert (old.mtime, old.xattrs) == (0, {})


def test_holes_of_a_file_are_zeros():
    body = b"a" * 512
    info = tarfile.TarInfo("sparse")
    info.size = len(body)
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "sparse",
        "GNU.sparse.size": "5000", "GNU.sparse.map": "1024,512",
    }  # fmt: skip
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(body))
    work = apply_layers(out.getvalue(), [file("next")])
    assert read_content(work, "sparse") == bytes(1024) + body + bytes(5000 - 1536)
    assert read_content(work, "next") == b"next"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_a_layer_is_read_plain_or_packed_and_named_by_its_tar(pack):
    layer = make_layer([file("a")]) + bytes(5000)
    work = Applying(Root(), Contents(io.BytesIO()), Budget())
    assert work.apply(io.BytesIO(pack(layer)), "it") == digest(layer)
    assert list_tree(work) == {"a": "a"}


def test_names_that_are_no_text_come_through():
    work = apply_layers([file("\udcff\u00e9", "x"), link("l", "\udcff\u00e9")])
    assert work.root.find(["l"]) is work.root.find(["\udcff\u00e9"]) is not None


@pytest.mark.parametrize("name", ["../x", "a/../../x", "a/..", ".."])
def test_a_name_that_leads_upwards_is_refused(name):
    assert "upwards" in refused([folder("a"), file(name)])
    assert "upwards" in refused([file("b"), hard("c", name)])


def test_an_absolute_name_begins_at_the_images_root():
    assert list_tree(apply_layers([file("/etc/passwd"), folder("/")])) == {"etc": "/", "etc/passwd": "/etc/passwd"}


@pytest.mark.parametrize("target", ["etc/shadow", "/etc/shadow", "missing/x", ""])
def test_a_hard_link_to_what_is_not_in_the_image_is_refused(target):
    assert "not there" in refused([hard("c", target)])


def test_a_hard_link_to_a_folder_or_itself_is_refused():
    assert "folder" in refused([folder("a"), hard("c", "a")])
    assert "not there" in refused([hard("c", "c")])


def test_a_hard_link_in_the_place_of_the_folder_that_it_leads_into_is_refused():
    assert "replaces" in refused([file("a/b/c"), hard("a", "a/b/c")])


def test_what_cannot_be_at_its_path_is_refused_by_name():
    assert "no folder" in refused([file("a"), file("a/b")])
    assert "circle" in refused([link("a", "b"), link("b", "a"), file("a/x")])
    assert "root" in refused([file("/")])
    assert "root" in refused([link(".", "/etc")])
    assert "root" in refused([file("a"), hard("./", "a")])
    assert "whiteout" in refused([file(".wh.")])
    assert "whiteout" in refused([file("a/.wh...")])
    assert "nothing" in refused([link("a", "")])


def test_names_longer_than_linux_has_are_refused():
    assert "255" in refused([file("a" * 256)])
    assert "4095" in refused([file("/".join(["a" * 100] * 41))])
    deep = "/".join(["d" * 200] * 15)
    assert "4095" in refused([folder(deep), link("l", deep), file("l/" + "/".join(["e" * 200] * 6))])


def test_a_kind_that_no_layer_has_is_refused():
    data = bytearray(make_layer([Member("a")]))
    data[156:157] = b"Q"
    header = data[:512]
    header[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(header)
    assert "kind" in refused(bytes(data))


def make_described(**said: str) -> bytes:
    """A layer with one file of which that is said in a header of its own."""
    info = tarfile.TarInfo("a")
    info.size, info.pax_headers = 600, said
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"zz\n" * 200))
    return out.getvalue()


@pytest.mark.parametrize("time", ["nan", "inf", "-inf", "1e999"])
def test_a_time_that_is_none_is_refused_by_that(time):
    assert "time" in refused(make_described(mtime=time))


def test_a_time_that_no_initramfs_can_hold_is_the_nearest():
    for said, held in (("-5", 0), ("1e30", 0xFFFF_FFFF), ("1.9", 1)):
        assert apply_layers(make_described(mtime=said)).root.find(["a"]).mtime == held


@pytest.mark.parametrize("mode", [b"\x80\0\0\1\0\0\0\0", b"\xff" * 8])
def test_a_mode_that_linux_has_not_is_refused_by_that(mode):
    data = bytearray(make_layer([Member("a")]))
    data[100:108] = mode  # in base 256: 2 ** 32, and -1
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert "mode" in refused(bytes(data))


@pytest.mark.parametrize(
    "said",
    [{"GNU.sparse.map": "a,b"}, {"GNU.sparse.size": "x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}],
)
def test_holes_that_are_no_numbers_are_refused(said):
    assert "no layer" in refused(make_described(**said))


def test_a_small_layer_that_unpacks_to_much_is_refused_by_the_name_of_the_limit():
    limits = ImportLimits(unpacked_bytes=1 << 20)
    bomb = make_layer([Member("a", body=bytes(4 << 20))])
    for pack in (bytes, gzip.compress, zstd.compress):
        assert "unpacked_bytes" in refused(pack(bomb), limits=limits)
    assert "unpacked_bytes" in refused(gzip.compress(make_layer([file("a")]) + bytes(4 << 20)), limits=limits)
    half = [Member("a", body=bytes(600_000))]
    assert "unpacked_bytes" in refused(half, half, limits=limits)


def test_a_file_that_is_all_hole_counts_with_its_size():
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "sparse",
        "GNU.sparse.size": str(1 << 50), "GNU.sparse.map": f"{1 << 50},0",
    }  # fmt: skip
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    assert "unpacked_bytes" in refused(out.getvalue())


def test_too_many_files_and_too_much_said_of_them_are_refused_by_the_name_of_the_limit():
    many = [file(str(number)) for number in range(11)]
    assert "entries" in refused(many, limits=ImportLimits(entries=10))
    wordy = [Member("a", xattrs=(("user.a", b"x" * 5000),)), Member("b", xattrs=(("user.a", b"x" * 5000),))]
    assert "described_bytes" in refused(wordy, limits=ImportLimits(described_bytes=9000))


@pytest.mark.parametrize("end", [100, 513, 1500])
def test_a_layer_that_was_cut_off_is_refused(end):
    data = make_layer([Member("a", body=b"x" * 2000)])
    assert "no layer" in refused(data[:end])
    packed = gzip.compress(data)
    assert "no layer" in refused(packed[: len(packed) // 2])


def test_a_layer_without_the_mark_of_its_end_is_whole_where_its_members_are():
    """As `umoci insert` writes it; what was cut off there has another digest."""
    data = make_layer([file("a"), file("b")])
    assert data[2048:] == bytes(len(data) - 2048)
    assert list_tree(apply_layers(data[:2048])) == {"a": "a", "b": "b"}
    assert "no layer" in refused(data[:1536])  # its content is missing
    header = make_layer([Member("a", xattrs=(("user.a", b"1"),))])[:1024]
    assert "no layer" in refused(header)  # what it belongs to is


def test_what_is_no_tar_is_refused():
    assert "no layer" in refused(b"this is no tar" * 100)


def test_an_empty_layer_changes_nothing():
    assert list_tree(apply_layers([file("a")], [])) == {"a": "a"}
