"""The least memory under KVM: what others measured is enough for images of every kind, and it is measured here too."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.rules.capabilities import need
from tests.vm.least import boots_in_its_least
from vmfork.config import Places
from vmfork.image import ImageStore
from vmfork.image.least import NAME

pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.slow, pytest.mark.limit_s(1200)]


@pytest.mark.parametrize("name", ["packed", "on-disk"])
async def test_an_image_boots_in_exactly_its_least_memory(working_kvm, instance, name) -> None:
    """With packages, and with its root on a disk; `default` and `bare` are tried with the others (tests/vm)."""
    need("brought-images", found=name in {image.name for image in ImageStore(instance.images).list_images()})
    await boots_in_its_least(name, instance)


async def test_it_is_measured_where_nobody_has(working_kvm, instance, tmp_path, monkeypatch) -> None:
    """All images here were brought with what another host found."""
    places = Places(tmp_path / "home", instance.runtime)
    places.home.mkdir(mode=0o700)
    for kept in instance.images, instance.home / "verdicts":
        shutil.copytree(kept, places.home / kept.name, symlinks=True)
    monkeypatch.setenv("VMFORK_HOME", str(places.home))
    least = ImageStore(places.images).open("default").kernel.parent / NAME
    least.unlink()
    await boots_in_its_least("default", places)
    assert ", kvm, " in json.loads(least.read_text())["measured"]
