"""What is decided about a build before there is a machine."""

from __future__ import annotations

import pytest

from tests.unit.store.samples import build_small
from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import HostError, TemplateExists
from vmfork.store import TemplateStore
from vmfork.template import build as module
from vmfork.template.build import build_template, ensure_template
from vmfork.template.kept import KeptRecipe, keeping_recipe
from vmfork.template.recipe import Recipe


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


STEPS = [{"run": "true"}]


@pytest.fixture
def ensure(places, build, monkeypatch):
    """Ensures `py` by a recipe, which is there as STEPS made it of 2 CPUs and 64 MiB; "built" where it is built."""

    async def build_anew(_name, _config, _recipe, *, replace=False, unless=None, **_options):
        if not replace:
            raise TemplateExists("py")
        return "built" if await unless() is None else "found by another"

    async def ensure(*, kept: KeptRecipe | None = None, steps=STEPS, **vm):
        made_by = Recipe(steps=STEPS, vm={"cpus": 2, "memory_mib": 64})
        template = await build("py", recipe=made_by.name)
        monkeypatch.setattr(module, "build_template", build_anew)
        with keeping_recipe("py", kept or KeptRecipe.of(made_by, made_by.apply_to(VMConfig())), places=places):
            recipe = Recipe(steps=steps, vm=vm)
            found = await ensure_template("py", None, instance=Instance(places), wait_s=0, recipe=recipe)
        return "there" if found != "built" and found.manifest.generation == template.generation else found

    return ensure


@pytest.mark.parametrize(
    ("said", "becomes"),
    [
        ({}, "there"),
        ({"memory_mib": 64}, "there"),
        ({"memory_mib": 64, "cpus": 2, "fork_timeout_s": 9.0}, "there"),
        ({"memory_mib": 128}, "built"),
        ({"memory_mib": 64, "cpus": 1}, "built"),
        ({"max_memory_mib": 512}, "built"),
        ({"max_cpus": 4}, "built"),
        ({"steps": [{"run": "false"}]}, "built"),
    ],
)
async def test_a_template_that_is_there_fits_a_recipe_that_made_it_of_the_size_that_it_says(
    ensure, said, becomes
) -> None:
    assert await ensure(**said) == becomes


async def test_of_one_that_came_from_elsewhere_the_size_is_not_known_and_is_taken_as_it_is(ensure) -> None:
    assert (
        await ensure(kept=KeptRecipe(config=VMConfig(), came_from="registry.example/py:1"), memory_mib=128) == "there"
    )


@pytest.mark.parametrize(("said", "becomes"), [({}, "there"), ({"memory_mib": 64}, "built")])
async def test_one_whose_record_is_damaged_is_built_again_where_its_size_is_asked_for(
    ensure, places, monkeypatch, said, becomes
) -> None:
    real = module.is_of_its_size

    def damage(name, recipe, *, places):
        (places.recipes / "py.json").write_bytes(b"{")
        return real(name, recipe, places=places)

    monkeypatch.setattr(module, "is_of_its_size", damage)
    assert await ensure(**said) == becomes
