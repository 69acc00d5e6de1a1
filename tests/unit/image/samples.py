"""An image of nothing much."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from vmfork.image.build import commit
from vmfork.image.record import RECORD_NAME, Image, encode_record, name_content
from vmfork.image.store import ImageStore

DIGEST = "a" * 64


def make_image(folder: Path, *, digest: str = DIGEST, name: str = "one", kernel: bytes = b"kernel") -> Image:
    """The value alone; `folder` is the image's own."""
    initramfs = b"initramfs"
    return Image(
        name=name,
        digest=digest,
        kernel=folder / "kernel",
        initramfs=folder / "initramfs",
        kernel_release="6.12",
        kernel_sha256=hashlib.sha256(kernel).hexdigest(),
        initramfs_sha256=hashlib.sha256(initramfs).hexdigest(),
        arch="x86_64",
        recipe="c" * 64,
        suite="trixie",
        requested=("bash",),
        bare=False,
        packages={"bash": "5.2"},
        unpacked_bytes=4096,
        created_at="2025-01-01T00:00:00+00:00",
        kernel_bytes=len(kernel),
        initramfs_bytes=len(initramfs),
    )


def commit_image(
    store: ImageStore, name: str = "py", *, initramfs: bytes = b"initramfs", disk: bytes = b"", source: str = ""
) -> Image:
    """It is in the store under that name, and has the digests that it should have."""
    store.make()
    kernel = b"kernel" * 1000
    digests = [hashlib.sha256(each).hexdigest() for each in (kernel, initramfs, *filter(None, [disk]))]
    made = make_image(store.folder / "of", name=name, digest=name_content(*digests), kernel=kernel)
    image = replace(made, initramfs_sha256=digests[1], initramfs_bytes=len(initramfs), source=source)
    if disk:
        image = replace(image, disk_sha256=digests[2], disk_bytes=len(disk))
    with store.staging() as folder:
        built = folder / "image"
        built.mkdir()
        (built / "kernel").write_bytes(kernel)
        (built / "initramfs").write_bytes(initramfs)
        (built / RECORD_NAME).write_bytes(encode_record(image))
        if disk:
            (built / "disk").write_bytes(disk)
        commit(store, built, image)
    store.link(name, image.digest)
    return store.open(name)
