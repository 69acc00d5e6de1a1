"""Without the extra `oci` whoever asks a registry is told what to install, before anything is begun."""

from __future__ import annotations

from functools import partial

import pytest

from tests.unit.image.samples import commit_image
from vmfork.aio import Image, Template
from vmfork.config import ImageConfig, Instance, Places
from vmfork.container.kept import check_ensured
from vmfork.errors import HostError
from vmfork.image import ImageStore
from vmfork.oci import door
from vmfork.travel.images.moving import push_image

REF = "registry.example/team/app:1"


@pytest.fixture(params=["oras", "requests"])
def missing(request, monkeypatch) -> str:
    find = door.find_spec
    monkeypatch.setattr(door, "find_spec", lambda name: None if name == request.param else find(name))
    name: str = request.param
    return name


async def test_it_is_told_what_is_missing_and_how_to_get_it(missing, tmp_path) -> None:
    places = Places(home=tmp_path / "home", runtime=tmp_path / "runtime")
    store = ImageStore(places.images)
    image = commit_image(store)
    for work in (
        partial(Image.import_oci, REF, "app", places=places),
        partial(Image.build, "app", ImageConfig(source=REF), places=places),
        partial(push_image, image.name, REF, plain_http=False, instance=Instance(places)),
        partial(Image.pull, REF, "app", places=places),
        partial(Template.pull, REF, "app", places=places),
    ):
        with pytest.raises(HostError, match=f"registries need {missing}") as error:
            await work()
        assert "pip install 'vmfork[oci]'" in error.value.hint
    assert [each.name for each in store.list_images()] == [image.name]
    assert not [*store.folder.glob(".staging*")]


def test_an_image_that_is_there_needs_no_registry(missing, tmp_path) -> None:
    store = ImageStore(tmp_path)
    name = commit_image(store).name
    check_ensured(REF, name, store=store)
    for more in ({"name": name, "again": True}, {"name": "other"}):
        with pytest.raises(HostError, match=f"registries need {missing}"):
            check_ensured(REF, store=store, **more)
