"""What `factory status` says of templates that cannot be forked: why, and what becomes of requests."""

from __future__ import annotations

import pytest

from tests.unit.store.samples import build_small
from vmfork.config import FactoryConfig, Instance, Places, VMConfig
from vmfork.factory.status import find_statuses
from vmfork.store import TemplateStore
from vmfork.template.kept import KeptRecipe, keeping_recipe


@pytest.fixture
async def here(tmp_path):
    places = Places(home=tmp_path / "home", runtime=tmp_path / "runtime")
    yield Instance(places)
    store = TemplateStore(places.templates)
    for name in store.list_names():
        await store.remove(name)


@pytest.mark.parametrize(
    ("config", "requests"),
    [
        ({"template": True}, "built"),
        ({"template": True, "build": "background"}, "booted"),
        ({"template": True, "build": "background", "fallback": "refuse"}, "refused"),
        ({"templates": ("factory",)}, "refused"),
        ({"templates": ("factory",), "missing": "boot"}, "booted"),
    ],
)
async def test_a_template_that_is_not_there_says_what_becomes_of_requests(here, config, requests) -> None:
    (status,) = await find_statuses(FactoryConfig(**config), instance=here)
    assert (status.on, status.code, status.requests) == (False, "template-not-found", requests)


async def test_nothing_stands_in_for_one_that_was_warmed_up(here) -> None:
    with keeping_recipe("factory", KeptRecipe(config=VMConfig(), warm_up=("true",)), places=here.places):
        pass
    config = FactoryConfig(template=True, build="background")
    (status,) = await find_statuses(config, instance=here)
    assert status.requests == "refused"
    (status,) = await find_statuses(FactoryConfig(template=True, build="background", fallback="boot"), instance=here)
    assert status.requests == "booted"


async def test_a_stale_one_is_built_again(here) -> None:
    await build_small(TemplateStore(here.places.templates), "factory", host_boot_id="before")
    (status,) = await find_statuses(FactoryConfig(template=True), instance=here)
    assert (status.code, status.requests) == ("template-stale", "built")
    assert "host.boot_id" in status.reason
