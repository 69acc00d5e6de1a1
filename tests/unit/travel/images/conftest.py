"""Two instances, and images of noise in the first of them."""

from __future__ import annotations

import random

import pytest

from tests.unit.image.samples import commit_image
from vmfork.config import Instance, Places
from vmfork.image import Image, ImageStore

MIB = 1 << 20


@pytest.fixture
def here(tmp_path) -> Instance:
    return Instance(Places(home=tmp_path / "home", runtime=tmp_path / "runtime"))


@pytest.fixture
def there(tmp_path) -> Instance:
    return Instance(Places(home=tmp_path / "other-home", runtime=tmp_path / "other-runtime"))


@pytest.fixture
def add_image(here):
    """Commits an image whose initramfs takes several layers, the last of them not a full one."""

    def add(name: str = "py", *, seed: int = 1, disk: bytes = b"", source: str = "") -> Image:
        initramfs = random.Random(seed).randbytes(MIB) * 33 + b"tail!"
        return commit_image(ImageStore(here.places.images), name, initramfs=initramfs, disk=disk, source=source)

    return add
