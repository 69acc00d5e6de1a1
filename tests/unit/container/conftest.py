"""Roots of layers, as what can be compared."""

from __future__ import annotations

import io
import stat
from typing import TYPE_CHECKING

import pytest

from tests.images import Member, folder, hard, make_layer
from vmfork.container.importing import import_image
from vmfork.container.layer import Applying, Contents
from vmfork.container.limits import Budget, ImportLimits
from vmfork.container.root import Root
from vmfork.image import ImageStore, cpio, lz4, recipe
from vmfork.image.record import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


_RELEASE = "6.12.1-test"
_HOME = f"usr/lib/modules/{_RELEASE}"
MODULE = f"{_HOME}/kernel/drivers/net/virtio_net.ko"
LAYERS = [[folder("etc"), Member("etc/a", body=b"old")], [Member("etc/a", body=b"new", uid=7), hard("b", "etc/a")]]
CONFIG = {"Env": ["PATH=/x", "A=b=c"], "WorkingDir": "/work/here", "User": "7:8", "Entrypoint": ["/e"], "Cmd": ["c"]}


@pytest.fixture
def store(tmp_path):
    return ImageStore(tmp_path / "images")


@pytest.fixture
def kernel(tmp_path):
    """An image whose kernel can be taken, and in which nothing else is right."""
    at = tmp_path / "kernel"
    at.mkdir()
    (at / "kernel").write_bytes(b"kernel")
    with (at / "initramfs").open("wb") as file, lz4.LegacyWriter(file) as packer:
        writer = cpio.Writer(packer)
        built_in = "".join(f"kernel/{name}.ko\n" for name in recipe.MODULES if name != "virtio_net").encode()
        for path, body in {MODULE: b"module", f"{_HOME}/modules.builtin": built_in, "bin/sh": b"not taken"}.items():
            writer.add(path, stat.S_IFREG | 0o644, body)
        writer.finish()
        packer.finish()
    return Image(
        name="default", digest="0" * 64, kernel=at / "kernel", initramfs=at / "initramfs", kernel_release=_RELEASE,
        kernel_sha256="", initramfs_sha256="", arch="x86_64", recipe="", suite="trixie", requested=(), bare=False,
        packages={}, unpacked_bytes=1, created_at="", kernel_bytes=6, initramfs_bytes=1,
    )  # fmt: skip


@pytest.fixture
def bring(store, kernel):
    async def bring(source: str, **more: object) -> Image:
        return await import_image(source, "it", kernel=kernel, store=store, **more)  # type: ignore[arg-type]

    return bring


def files_of(image: Image) -> dict[str, bytes]:
    """What its guest would have; of names that are one file the last has the content."""
    return {name: body for name, _, body in cpio.read_entries(lz4.decompress(image.initramfs.read_bytes()))}


@pytest.fixture
def apply() -> Callable[..., Applying]:
    return apply_layers


def apply_layers(*layers: Iterable[Member] | bytes, limits: ImportLimits | None = None) -> Applying:
    """The layers, each a list of members or a tar, were applied."""
    work = Applying(Root(), Contents(io.BytesIO()), Budget(limits or ImportLimits()))
    for number, layer in enumerate(layers, 1):
        data = layer if isinstance(layer, bytes) else make_layer(layer)
        work.apply(io.BytesIO(data), f"layer {number}")
    work.contents.finish()
    return work


def read_content(work: Applying, path: str) -> bytes:
    inode = work.root.find(path.split("/"))
    assert inode is not None
    assert inode.content is not None
    work.contents.file.seek(inode.content.offset)
    return work.contents.file.read(inode.content.size)


def list_tree(work: Applying) -> dict[str, str]:
    """Every path, and what is there in a word: content, target, or kind."""
    found = {}
    for path, inode in work.root.walk():
        if stat.S_ISREG(inode.mode):
            found[path] = read_content(work, path).decode()
        elif stat.S_ISLNK(inode.mode):
            found[path] = f"-> {inode.target}"
        else:
            found[path] = "/" if inode.is_folder else stat.filemode(inode.mode)[0]
    return found
