from __future__ import annotations

import pytest

from tests.unit.image.samples import DIGEST, make_image
from vmfork.image.record import RECORD_NAME, Image, encode_record
from vmfork.image.store import ImageStore


@pytest.fixture
def images_dir(tmp_path):
    folder = tmp_path / "images"
    ImageStore(folder).make()
    return folder


@pytest.fixture
def add_image(images_dir):
    """Commits an image made of nothing much, under a name."""

    def add(name: str = "one", digest: str = DIGEST, kernel: bytes = b"kernel") -> Image:
        with ImageStore(images_dir).staging() as folder:
            built = folder / "image"
            built.mkdir()
            (built / "kernel").write_bytes(kernel)
            (built / "initramfs").write_bytes(b"initramfs")
            image = make_image(images_dir / digest, digest=digest, name=name, kernel=kernel)
            (built / RECORD_NAME).write_bytes(encode_record(image))
            ImageStore(images_dir).commit(built, digest)
        ImageStore(images_dir).link(name, digest)
        return image

    return add
