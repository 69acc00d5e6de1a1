"""A template of a derived image does not fit any more when the image that it was derived from is another."""

from __future__ import annotations

import pytest

from tests.unit.image.samples import make_image
from vmfork.aio import Template
from vmfork.errors import TemplateStale
from vmfork.image import ImageStore
from vmfork.image.derived import name_derived
from vmfork.image.record import RECORD_NAME, encode_record


async def test_a_template_whose_base_image_was_built_again_is_stale(build, places) -> None:
    base = make_image(places.images / ("a" * 64), name="default")
    template = await build("py", image=name_derived(base, ["git"]), base_image="default")  # works without its images
    _keep(places, "a" * 64)
    assert (await Template.open("py", places=places)).generation == template.generation
    _keep(places, "b" * 64)
    with pytest.raises(TemplateStale, match=r"image\.base is 'default\.with-.*'default with bbbbbbbbbbbb' here"):
        await Template.open("py", places=places)


def _keep(places, digest: str) -> None:
    """The image `default` has that digest."""
    store = ImageStore(places.images)
    store.make()
    folder = places.images / digest
    folder.mkdir()
    (folder / "kernel").write_bytes(b"kernel")
    (folder / "initramfs").write_bytes(b"initramfs")
    (folder / RECORD_NAME).write_bytes(encode_record(make_image(folder, digest=digest, name="default")))
    store.link("default", digest)
