"""The image of a recipe with packages is found by what it is made of, and is never that of a former base."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.image.fake_run import MEMBERS, stand_in
from tests.unit.image.samples import commit_image
from vmfork.config import ImageConfig, Instance, Places, VMConfig
from vmfork.errors import ConfigError
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.image.derived import is_derived
from vmfork.image.record import RECORD_NAME, encode_record
from vmfork.recipe.derive import derive_config, list_packages
from vmfork.recipe.words import read_steps

GIT = read_steps([{"packages": ["git"]}])


@pytest.fixture
async def run(monkeypatch, tmp_path):
    """Stands for a run of mmdebstrap."""
    return stand_in(monkeypatch, tmp_path)


def test_packages_are_those_of_all_steps_each_once() -> None:
    one, other = ({"packages": ["git", "make"]}, {"packages": ["make", "git", "git"]})
    assert list_packages(read_steps([one])) == list_packages(read_steps([other, one])) == ("git", "make")


async def test_a_base_that_was_built_again_has_another_and_the_former_one_is_gone(run, tmp_path, monkeypatch) -> None:
    instance = Instance(Places(home=tmp_path / "home", runtime=tmp_path / "run"))
    store = ImageStore(instance.places.images)

    async def derive(steps=GIT) -> str:
        return (await derive_config(VMConfig(image="base"), steps, instance=instance)).image

    base = await build_image("base", ImageConfig(packages=("bash",)), store=store)
    assert await derive(()) == "base"
    monkeypatch.setitem(MEMBERS, "./usr/bin/git", b"git")
    first = await derive()
    assert (await derive(), run.count) == (first, 2)
    assert is_derived(first, base)
    _make_older(store, first)

    monkeypatch.setitem(MEMBERS, "./usr/bin/dash", b"mended")
    mended = await build_image("base", ImageConfig(packages=("bash",)), store=store, rebuild=True)
    assert mended.digest != base.digest
    second = await derive()
    assert is_derived(second, mended)
    assert run.count == 4  # it was not the one of the same packages, which is older
    assert [image.name for image in store.list_images()] == sorted(["base", second])


async def test_one_of_the_same_packages_that_is_newer_than_the_base_is_taken(run, tmp_path) -> None:
    instance = Instance(Places(home=tmp_path / "home", runtime=tmp_path / "run"))
    store = ImageStore(instance.places.images)
    await build_image("base", ImageConfig(packages=("bash",)), store=store)
    mine = await build_image("mine", ImageConfig(packages=("bash", "git")), store=store)
    config = await derive_config(VMConfig(image="base"), GIT, instance=instance)
    assert (store.open(config.image).digest, run.count) == (mine.digest, 2)


async def test_packages_are_not_added_to_a_container_image(tmp_path) -> None:
    instance = Instance(Places(home=tmp_path / "home", runtime=tmp_path / "run"))
    store = ImageStore(instance.places.images)
    image = commit_image(store, "app")
    record = encode_record(replace(image, source="registry.example/app:1"))
    (store.folder / image.digest / RECORD_NAME).write_bytes(record)
    with pytest.raises(ConfigError, match=r"packages: .*'app' is a container image .*registry\.example/app:1"):
        await derive_config(VMConfig(image="app"), GIT, instance=instance)


def _make_older(store: ImageStore, name: str) -> None:
    """A base is built again minutes after it at least, and a record knows seconds."""
    image = store.open(name)
    record = encode_record(replace(image, created_at="2025-01-01T00:00:00+00:00"))
    (store.folder / image.digest / RECORD_NAME).write_bytes(record)
