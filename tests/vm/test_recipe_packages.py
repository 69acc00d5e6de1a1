"""Packages of a recipe are in the image that its machine boots: built once, found by what it is made of."""

from __future__ import annotations

import pytest

from vmfork.aio import Recipe, Template
from vmfork.config import VMConfig
from vmfork.errors import ImageError
from vmfork.image import ImageStore
from vmfork.store.layers import LayerStore
from vmfork.template.removal import remove_template

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.limit_s(600), pytest.mark.needs("mmdebstrap")]


@pytest.fixture(autouse=True)
async def nothing_is_left(instance):
    store = ImageStore(instance.images)
    before = {image.name for image in store.list_images()}
    yield
    for name in await Template.list():
        if name.startswith("packed"):
            await remove_template(name, places=instance)
    await LayerStore(instance.layers).remove_all()
    for image in store.list_images():
        if image.name not in before and ".with-" in image.name:  # others are those of tests that run beside this one
            store.remove(image.name)


async def test_the_machine_has_them_and_the_image_is_built_once(instance) -> None:
    recipe = Recipe(steps=[{"packages": ["hello"]}, {"run": "hello > /root/said"}])
    template = await Template.build("packed", recipe=recipe)
    assert template.manifest.image.startswith("default.with-")
    assert template.manifest.base_image == "default"
    async with await template.fork() as vm:
        assert await vm.read_file("/root/said") == b"Hello, world!\n"
    image = ImageStore(instance.images).open(template.manifest.image)
    other = await Template.build("packed-other", packages=["hello"])
    assert ImageStore(instance.images).open(other.manifest.image).created_at == image.created_at
    # Whoever asks for the base image takes it as it is.
    assert (await Template.ensure("packed", VMConfig())).generation == template.generation
    assert (await Template.ensure("packed", recipe=recipe)).generation == template.generation


async def test_a_package_that_does_not_exist_is_named() -> None:
    with pytest.raises(ImageError, match="no package named no-such-package"):
        await Template.build("packed", packages=["no-such-package"])
    assert "packed" not in await Template.list()
