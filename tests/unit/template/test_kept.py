"""The recipe of a template outlives it, says nothing secret, and is replaced and removed with it."""

from __future__ import annotations

import pytest

from vmfork.adopt.secrets import Secrets
from vmfork.config import Places, VMConfig
from vmfork.errors import TemplateCorrupt, TemplateNotFound
from vmfork.template.kept import KeptRecipe, find_recipe, keeping_recipe
from vmfork.template.recipe import Recipe
from vmfork.template.removal import remove_template

CONFIG = VMConfig(cpus=2, memory_mib=512, kernel_args="quiet", reseed="agent")
RECIPE = Recipe(
    warm_up=("one", "two"),
    ready="test -e /run/ready",
    secrets=Secrets(paths=("/root/key",), env=("TOKEN",), allowed=True),
    step_timeout_s=7.0,
    ready_timeout_s=8.0,
)


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(home=tmp_path / "home", runtime=tmp_path / "runtime")


def keep(recipe: Recipe, places: Places) -> None:
    with keeping_recipe("web", KeptRecipe.of(recipe, CONFIG), places=places):
        pass


def test_it_comes_back_as_it_was_with_its_configuration(places) -> None:
    keep(RECIPE, places)
    kept = find_recipe("web", places=places)
    assert (kept.config, kept.to_recipe("web")) == (CONFIG, RECIPE)
    assert find_recipe("other", places=places) is None
    path = places.recipes / "web.json"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_steps_come_back_in_their_words_with_their_folder(places, tmp_path) -> None:
    (tmp_path / "app").write_text("x")
    recipe = Recipe(
        steps=[
            {"copy": ["app", "/app"]},
            {"run": "make", "network": ["a.example"], "timeout": 5},
            {"ready": {"port": 1}},
        ],
        folder=tmp_path,
        warm_up=("last",),
    )
    keep(recipe, places)
    kept = find_recipe("web", places=places)
    assert (kept.to_recipe("web"), kept.name) == (recipe, recipe.name)


def test_values_of_variables_are_not_kept_and_what_needs_them_is_refused_by_name(places) -> None:
    keep(Recipe(warm_up=("fetch",), env={"TOKEN": "s3cret", "USER": "me"}), places)
    assert b"s3cret" not in (places.recipes / "web.json").read_bytes()
    with pytest.raises(TemplateNotFound, match="no template is named 'web'") as caught:
        find_recipe("web", places=places).to_recipe("web")
    assert "TOKEN and USER, whose values are not kept" in caught.value.hint


def test_a_publishing_that_fails_leaves_the_recipe_that_was_there(places) -> None:
    keep(RECIPE, places)
    with pytest.raises(RuntimeError), keeping_recipe("web", KeptRecipe(config=CONFIG), places=places):
        raise RuntimeError
    assert find_recipe("web", places=places).to_recipe("web") == RECIPE
    with pytest.raises(RuntimeError), keeping_recipe("new", KeptRecipe(config=CONFIG), places=places):
        raise RuntimeError
    assert find_recipe("new", places=places) is None


async def test_removing_forgets_it_even_where_the_template_is_gone_already(places) -> None:
    keep(RECIPE, places)
    with pytest.raises(TemplateNotFound):
        await remove_template("web", places=places)
    assert find_recipe("web", places=places) is None


@pytest.mark.parametrize("data", [b"", b"{}", b'{"config": {"cpus": 0}}', b'{"config": {"reseed": "never"}}'])
def test_what_cannot_be_read_is_told_and_not_passed_over(places, data) -> None:
    keep(RECIPE, places)
    (places.recipes / "web.json").write_bytes(data)
    with pytest.raises(TemplateCorrupt, match="its recipe cannot be read"):
        find_recipe("web", places=places)
