"""What is decided about a build before there is a machine."""

from __future__ import annotations

import pytest

from tests.unit.store.samples import build_small
from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import HostError
from vmfork.store import TemplateStore
from vmfork.template.build import build_template


@pytest.fixture
async def places(tmp_path):
    places = Places(home=tmp_path / "home", runtime=tmp_path / "runtime")
    yield places
    for folder in (places.templates, places.layers):
        TemplateStore(folder).clear()


async def test_who_waited_for_another_takes_what_that_has_made(places) -> None:
    generation = await build_small(TemplateStore(places.templates))
    made = object()

    async def find():
        return made

    found = await build_template("one", VMConfig(), instance=Instance(places), replace=True, unless=find)
    assert found is made
    assert TemplateStore(places.templates).find_generation("one") == generation


async def test_a_template_that_has_no_room_beside_layers_is_given_theirs(places, monkeypatch) -> None:
    layers = TemplateStore(places.layers)
    for name in ("a", "b", "c"):
        await build_small(layers, name)
    monkeypatch.setattr(
        "vmfork.store.staging.facts.available_memory_bytes", lambda: 0 if len(layers.list_names()) > 1 else 1 << 40
    )

    async def find():
        return None if len(layers.list_names()) > 1 else "room"

    assert await build_template("one", VMConfig(), instance=Instance(places), unless=find) == "room"
    assert len(layers.list_names()) == 1
    monkeypatch.setattr("vmfork.store.staging.facts.available_memory_bytes", lambda: 0)
    with pytest.raises(HostError, match="not enough memory"):
        await build_template("one", VMConfig(), instance=Instance(places))
    assert layers.list_names() == []
