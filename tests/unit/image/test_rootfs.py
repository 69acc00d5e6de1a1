"""What is put into a guest's file system beside the packages' files."""

from __future__ import annotations

import io

from vmfork.image import recipe, rootfs
from vmfork.image.tree import Tree


def make_tree(*paths: str) -> Tree:
    """A tree with the least that can be finished, and empty files at `paths`."""
    tree = Tree(io.BytesIO())
    for path in ("etc/passwd", "etc/group", *paths):
        tree.add_file(path, b"")
    return tree


def finish(tree: Tree, monkeypatch, *, kernel: Tree | None = None, wanted: tuple[str, ...] = ()) -> Tree:
    monkeypatch.setattr(recipe, "MODULES", dict.fromkeys(wanted, ""))
    rootfs.finish_tree(rootfs.Unpacked(tree, Tree(io.BytesIO()), kernel or Tree(io.BytesIO())), b"agent", "6.12")
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
