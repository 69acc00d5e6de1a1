from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from vmfork.image import store
from vmfork.image.record import RECORD_NAME, Image, encode_record

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
        packages={"bash": "5.2"},
        unpacked_bytes=4096,
        min_memory_mib=64,
        created_at="2025-01-01T00:00:00+00:00",
        kernel_bytes=len(kernel),
        initramfs_bytes=len(initramfs),
    )


@pytest.fixture
def images_dir(tmp_path):
    folder = tmp_path / "images"
    store.make_store(folder)
    return folder


@pytest.fixture
def add_image(images_dir):
    """Commits an image made of nothing much, under a name."""

    def add(name: str = "one", digest: str = DIGEST, kernel: bytes = b"kernel") -> Image:
        with store.staging(images_dir) as folder:
            built = folder / "image"
            built.mkdir()
            (built / "kernel").write_bytes(kernel)
            (built / "initramfs").write_bytes(b"initramfs")
            image = make_image(images_dir / digest, digest=digest, name=name, kernel=kernel)
            (built / RECORD_NAME).write_bytes(encode_record(image))
            store.commit(built, digest, images_dir=images_dir)
        store.link_name(name, digest, images_dir=images_dir)
        return image

    return add
