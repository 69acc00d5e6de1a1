"""What is put into a guest's file system beside the packages' files."""

from __future__ import annotations

import io
import tarfile

from vmfork.image import recipe, rootfs
from vmfork.image.tree import Tree


def make_tree(*paths: str) -> Tree:
    """A tree with the least that can be finished, and empty files at `paths`."""
    tree = Tree(io.BytesIO())
    for path in ("etc/passwd", "etc/group", *paths):
        tree.add_file(path, b"")
    return tree


def make_told(**files: str) -> Tree:
    told = Tree(io.BytesIO())
    for name, text in files.items():
        told.add_file(name, text.encode())
    return told


def finish(tree: Tree, monkeypatch, *, kernel: Tree | None = None, wanted: tuple[str, ...] = ()) -> Tree:
    monkeypatch.setattr(recipe, "MODULES", dict.fromkeys(wanted, ""))
    kernel = kernel or Tree(io.BytesIO())
    kernel.add_file("usr/lib/modules/6.12/modules.builtin", b"kernel/virtio_blk.ko\nkernel/ext4.ko\n")
    rootfs.finish_tree(rootfs.Unpacked(tree, Tree(io.BytesIO()), kernel), b"agent", "6.12")
    return tree


def test_a_guest_with_python_has_the_module(monkeypatch):
    tree = finish(make_tree("usr/bin/python3"), monkeypatch)
    assert tree.read(recipe.GUEST_MODULE) == recipe.read_guest_module()
    assert tree.read(recipe.AGENT_PATH) == b"agent"


def test_a_guest_without_python_has_nothing_of_it(monkeypatch):
    tree = finish(make_tree(), monkeypatch)
    assert not [path for path in tree if "python" in path]


def test_a_module_is_loaded_with_all_it_needs_where_its_device_is(monkeypatch):
    kernel = Tree(io.BytesIO())
    for name, needs in (("virtio_mmio", b"virtio_ring"), ("virtio-ring", b""), ("loop", b"")):
        kernel.add_file(f"usr/lib/modules/6.12/kernel/drivers/{name}.ko", b"\0depends=" + needs + b"\0")
    monkeypatch.setattr(recipe, "BOOT_MODULES", (("virtio_mmio", "/sys/the/device"), ("built_in", "/sys/another")))
    tree = finish(make_tree(), monkeypatch, kernel=kernel, wanted=("loop", "virtio_mmio"))
    home = "/usr/lib/modules/6.12/kernel/drivers"
    assert tree.read(recipe.MODULES_LIST).decode().splitlines() == [
        f"{home}/virtio-ring.ko /sys/the/device",
        f"{home}/virtio_mmio.ko /sys/the/device",
    ]


def test_modprobe_finds_each_module_and_what_it_needs(monkeypatch):
    kernel = Tree(io.BytesIO())
    kernel.add_file("usr/lib/modules/6.12/kernel/a.ko", b"\0depends=b_c\0alias=char-major-10-200\0")
    kernel.add_file("usr/lib/modules/6.12/kernel/b-c.ko", b"\0depends=\0")
    kernel.add_file("usr/lib/modules/6.12/modules.order", b"kernel/b-c.ko\nkernel/a.ko\n")
    tree = finish(make_tree(), monkeypatch, kernel=kernel, wanted=("a",))
    assert tree.read("usr/lib/modules/6.12/modules.dep") == b"kernel/b-c.ko:\nkernel/a.ko: kernel/b-c.ko\n"
    assert b"kernel/a.ko: kernel/b-c.ko\0" in tree.read("usr/lib/modules/6.12/modules.dep.bin")
    assert b"har_major_10_200\0" in tree.read("usr/lib/modules/6.12/modules.alias.bin")


def test_a_slim_image_has_no_file_that_only_unneeded_packages_brought():
    tree = make_tree("usr/bin/perl", "usr/bin/dash", "usr/share/both", "etc/made-by-a-script")
    tree.add_link("etc/alternatives/lang", "/usr/bin/perl")
    tree.add_link("usr/bin/lang", "/etc/alternatives/lang")
    tree.add_link("var/lock", "/run/lock")
    tree.add_folder("run/lock")
    tree.add_file("var/lib/dpkg/info/perl-base.list", b"/usr\n/usr/bin\n/usr/bin/perl\n/usr/share/both\n")
    tree.add_file("var/lib/dpkg/info/dash:amd64.list", b"/usr\n/usr/bin/dash\n/usr/share/both\n")
    told = make_told(installed="dash 1\nperl-base 2\n", needed="dash\n")
    rootfs.drop(rootfs.Unpacked(tree, told, Tree(io.BytesIO())), slim=True)
    assert {"usr/bin/dash", "usr/share/both", "etc/made-by-a-script", "var/lock"} <= set(tree)
    assert not {"usr/bin/perl", "usr/bin/lang", "etc/alternatives/lang", "run/lock"} & set(tree)


def test_another_image_keeps_them_and_the_database_of_dpkg():
    tree = make_tree("usr/bin/perl", "var/lib/dpkg/status")
    rootfs.drop(rootfs.Unpacked(tree, make_told(), Tree(io.BytesIO())), slim=False)
    assert {"usr/bin/perl", "var/lib/dpkg/status"} <= set(tree)


def test_what_the_build_made_bears_the_date_of_the_recipe_and_its_owner():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, mtime, body in (
            ("./usr/bin/old", 1000, b"x"),
            ("./etc/new", 2000, b"x"),
            ("./.vmfork/owners", 2000, b"755 0 0 \x004440 7 8 etc/new\x000 7 8 usr/bin/old\x00"),
        ):
            info = tarfile.TarInfo(name)
            info.mtime, info.size, info.mode = mtime, len(body), 0o4640
            tar.addfile(info, io.BytesIO(body))
    tree = rootfs.read_tar(file_at_start(file), lambda _: None, started_at=1500).tree
    old = tree.get("usr/bin/old")
    assert (old.mtime, old.mode & 0o7777) == (1000, 0o4640)  # what cannot be is not believed
    new = tree.get("etc/new")
    assert (new.mtime, new.mode & 0o7777, new.uid, new.gid) == (recipe.EPOCH, 0o4440, 7, 8)


def file_at_start(file: io.BytesIO) -> io.BytesIO:
    file.seek(0)
    return file
