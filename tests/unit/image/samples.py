"""An image of nothing much."""

from __future__ import annotations

import hashlib
from pathlib import Path

from vmfork.image.record import Image

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
