"""Templates stay within the budget of their memory: the one used least recently goes, what must stay stays."""

from __future__ import annotations

import hashlib
import os
import re

import pytest

from tests.unit.store.samples import build_small
from vmfork.config import Budget, FactoryConfig, Instance, Places, VMConfig
from vmfork.errors import HostError
from vmfork.image import DiskStore
from vmfork.progress import ignore_progress
from vmfork.store import TemplateStore
from vmfork.template import budget as budget_module
from vmfork.template.budget import make_room
from vmfork.template.kept import KeptRecipe, find_recipe, keeping_recipe
from vmfork.template.recipe import Recipe
from vmfork.units import MIB

BARE = Recipe()


@pytest.fixture
async def places(tmp_path):
    places = Places(home=tmp_path / "home", runtime=tmp_path / "runtime")
    yield places
    store = TemplateStore(places.templates)
    for name in store.list_names():
        await store.remove(name)


@pytest.fixture
def make(places):
    """A template that holds 100 MiB by its manifest, last used `used_at` seconds after 1970."""

    async def make(name: str, *, used_at: float, recipe: Recipe | None = BARE) -> None:
        store = TemplateStore(places.templates)
        await build_small(store, name, memory_allocated_bytes=100 * MIB)
        os.utime(store.folder / name / "lock", (used_at, used_at))
        if recipe is not None:
            with keeping_recipe(name, KeptRecipe.of(recipe, VMConfig()), places=places):
                pass

    return make


def names(places) -> list[str]:
    return TemplateStore(places.templates).list_names()


async def test_the_one_used_least_recently_goes_and_its_recipe_stays(places, make) -> None:
    for name, used_at in (("newest", 30), ("oldest", 10), ("middle", 20)):
        await make(name, used_at=used_at)
    TemplateStore(places.templates).note_use("oldest")
    told = []
    instance = Instance(places, lambda event: told.append(event.step), Budget(400))
    await make_room("new", 100, instance=instance)
    assert (names(places), told) == (["middle", "newest", "oldest"], [])
    await make_room("new", 256, instance=instance)
    assert names(places) == ["oldest"]
    assert [re.findall("'(.*)'", step) for step in told] == [["middle"], ["newest"]]
    assert find_recipe("middle", places=places) == KeptRecipe(config=VMConfig())


async def test_disks_that_nobody_needs_any_more_go_with_them(places, make, tmp_path) -> None:
    await make("old", used_at=10)
    disks, content = DiskStore(places.disks), tmp_path / "disk"
    content.write_bytes(b"its root")
    digest = hashlib.sha256(b"its root").hexdigest()
    disks.add(content, digest)  # no template has it: as when the last one that did is gone
    instance = Instance(places, ignore_progress, Budget(150))
    await make_room("old", 100, instance=instance)
    assert disks.locate(digest).exists()
    await make_room("new", 100, instance=instance)
    assert not disks.locate(digest).exists()


async def test_what_is_forked_named_or_could_not_be_built_again_stays(places, make, monkeypatch) -> None:
    await make("forked", used_at=1)
    await make("named", used_at=2)
    await make("of-another-hand", used_at=3, recipe=None)
    await make("with-secrets", used_at=4, recipe=Recipe(env={"TOKEN": "x"}))
    await make("free", used_at=5)
    record = type("Record", (), {"template": "forked"})
    monkeypatch.setattr(budget_module, "list_records", lambda _: [record])
    instance = Instance(places, ignore_progress, FactoryConfig(templates=("named",), budget_mib=600).budget)
    with pytest.raises(HostError, match=r"'new' needs 256 MiB of a budget of 600 MiB.*forked \(100 MiB\)") as caught:
        await make_room("new", 256, instance=instance)
    assert "free" not in str(caught.value)
    assert len(names(places)) == 5
    await make_room("new", 200, instance=instance)
    assert names(places) == ["forked", "named", "of-another-hand", "with-secrets"]


async def test_its_own_former_generation_counts_for_nothing_and_without_a_budget_all_stay(places, make) -> None:
    await make("one", used_at=1)
    await make_room("one", 100, instance=Instance(places, ignore_progress, Budget(100)))
    await make_room("two", 10**6, instance=Instance(places))
    assert names(places) == ["one"]
    with pytest.raises(HostError, match="which is less"):
        await make_room("one", 101, instance=Instance(places, ignore_progress, Budget(100)))
