"""A recipe as a file: what it says, and what it cannot say."""

from __future__ import annotations

import pytest

from vmfork.config.loader import load_settings
from vmfork.errors import ConfigError
from vmfork.template.recipe import name_recipe
from vmfork.template.recipe_file import read_recipe


def write(folder, text):
    path = folder / "web.toml"
    path.write_text(text)
    return path


def test_it_has_what_a_build_can_be_told(tmp_path) -> None:
    recipe = read_recipe(
        write(
            tmp_path,
            """
warm_up = ["echo one", "echo two"]
ready = "true"
secret_paths = ["/root/.netrc"]
secret_env = ["TOKEN"]
allow_secrets = true
step_timeout_s = "1m"
ready_timeout_s = 5
""",
        )
    )
    assert (recipe.warm_up, recipe.ready) == (("echo one", "echo two"), "true")
    assert (recipe.secrets.paths, recipe.secrets.env, recipe.secrets.allowed) == (("/root/.netrc",), ("TOKEN",), True)
    assert (recipe.step_timeout_s, recipe.ready_timeout_s) == (60.0, 5.0)
    empty = read_recipe(write(tmp_path, ""))
    assert (empty.warm_up, empty.name) == ((), "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("warmup = []", "did you mean warm_up"),
        ('warm_up = "echo"', "a list of strings"),
        ("warm_up = [1]", "a list of strings"),
        ("ready = 1", "a string"),
        ("allow_secrets = 1", "true or false"),
        ("step_timeout_s = -1", "not a positive number"),
        ('ready_timeout_s = "soon"', "ready_timeout_s"),
        ("ready_timeout_s = true", "a duration"),
        ('secret_paths = ["here"]', "not an absolute path"),
        ("warm_up = [", "not valid TOML"),
    ],
)
def test_what_it_cannot_say_is_refused_by_name(tmp_path, text, told) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(write(tmp_path, text))
    assert told in f"{caught.value} {caught.value.hint}"


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"factory\.recipe: cannot read .*none\.toml"):
        read_recipe(tmp_path / "none.toml")


def test_it_lies_beside_the_file_that_names_it(tmp_path, monkeypatch) -> None:
    settings = tmp_path / "etc" / "vmfork.toml"
    settings.parent.mkdir()
    settings.write_text('[factory]\ntemplate = true\nrecipe = "web.toml"\n')
    assert load_settings(settings, {}).factory.recipe == str(settings.with_name("web.toml"))
    monkeypatch.chdir(tmp_path)
    named = load_settings(settings, {"VMFORK_FACTORY_RECIPE": "web.toml"})
    assert named.factory.recipe == str(tmp_path / "web.toml")
    with pytest.raises(ConfigError, match="there is none"):
        load_settings(settings, {"VMFORK_FACTORY_TEMPLATE": "false"})


def test_a_name_tells_recipes_apart() -> None:
    assert name_recipe((), "") == ""
    recipes = [(("a",), ""), ((), "a"), (("a", "b"), ""), (("a b",), "")]
    assert len({name_recipe(*recipe) for recipe in recipes}) == len(recipes)
