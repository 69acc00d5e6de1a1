"""A recipe as a file: what it says, and what it cannot say."""

from __future__ import annotations

import pytest

from vmfork.adopt.secrets import Secrets
from vmfork.config import ImageConfig, VMConfig
from vmfork.config.loader import load_settings
from vmfork.errors import ConfigError
from vmfork.recipe.step import describe
from vmfork.records import read_record, write_record
from vmfork.template.kept import KeptRecipe
from vmfork.template.names import name_recipe
from vmfork.template.recipe import Recipe
from vmfork.template.recipe_file import read_recipe, read_template


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


TEMPLATES = """
[vm]
cpus = 1
[template.web]
image = "default"
memory = "512M"
cpus = 2
fork_timeout_s = "1m"
steps = [{run = "make", timeout = "5m"}, {copy = ["app/", "/srv"]}]
hooks = {after_fork = "hooks/reseed"}
start = "python3 main.py"
ready = {port = 8000}
warm_up = ["last"]
secret_env = ["TOKEN"]
[template.db]
ready = "pg_isready"
"""


def test_a_section_says_how_a_template_is_made_and_of_what_machine(tmp_path) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_text(TEMPLATES)
    name, recipe = read_template(path, "web")
    assert (name, recipe.folder) == ("web", tmp_path)
    assert [describe(step) for step in recipe.all_steps] == [
        "run make", "copy app/ /srv", "hooks hooks/reseed", "start python3 main.py", "ready port 8000", "run last",
    ]  # fmt: skip
    assert recipe.vm == {"image": "default", "memory_mib": 512, "cpus": 2, "fork_timeout_s": 60.0}
    assert recipe.apply_to(VMConfig(cpus=4, cpu_weight=7)) == VMConfig(
        cpus=2, memory_mib=512, fork_timeout_s=60.0, cpu_weight=7
    )
    assert recipe.secrets.env == ("TOKEN",)
    assert load_settings(path, {}).vm.cpus == 1


def test_which_template_is_meant_must_be_said_where_there_are_several(tmp_path) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_text(TEMPLATES)
    with pytest.raises(ConfigError, match=r"which template of .* is not said: it has web, db"):
        read_template(path)
    path.write_text('[template.one]\nready = "true"\n')
    assert read_template(path)[0] == "one"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[template.web]\nstep = []", "did you mean steps"),
        ("[template.web]\nmemry = 1", "did you mean memory"),
        ('[template.web]\nsteps = [{rum = "x"}]', "template.web.steps: 1.rum: unknown"),
        ('[template.web]\nsteps = [{run = "x"}, {packages = ["git"]}]', "packages come after another step"),
        ("[template.web]\nsteps = 5", "must be a list of steps"),
        ('[template.web]\nhooks = ["x"]', "template.web.hooks: ['x'] is no table"),
        ("[template.web]\nstart = 5", "template.web.start: must be text"),
        ("[template.web]\nready = {port = 0}", "template.web.ready.port: 0 is no port"),
        ('[template.web]\nready = {log = "up"}', "ready.log: nothing was started"),
        ('[template.web]\nmemory = "1G"\nmemory_mib = 512', "template.web.memory: memory_mib says it too"),
        ('[template.web]\nmemory = "much"', "template.web.memory: 'much' is not a size"),
        ("[template.web]\ncpus = 0", "vm.cpus: 0 is out of range"),
        ("[template.wbe]", "did you mean wbe"),
        ("template = 5", "must be sections"),
        ("[template]\nweb = 5", "must be sections"),
        ("[image]", "no such section"),
        ("[templat.web]", "did you mean template"),
        ("[templates.web]", "did you mean template"),
        ("[template.web]\n[factry]", "did you mean factory"),
        ("[template.web]\nsteps = [", "not valid TOML"),
    ],
)
def test_what_a_section_cannot_say_is_refused_with_its_file(tmp_path, text, told) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_template(path, "web")
    assert told in f"{caught.value} {caught.value.hint}"
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_utf_8_is_refused_by_its_name(tmp_path) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_bytes(b'[template.web]\nstart = "\xff"\n')
    with pytest.raises(ConfigError, match=r"vmfork\.toml is not valid TOML: 'utf-8' codec"):
        read_template(path)


def test_code_that_nobody_could_run_is_refused_before_a_machine_is_booted() -> None:
    for line, field in (("#!pyhton\nimport json", "language"), ("#!python\n'\udcff'", "code")):
        with pytest.raises(ConfigError) as caught:
            Recipe(warm_up=[line])
        assert caught.value.field == field
    assert Recipe(warm_up=["#!python\nimport json", "#!/bin/sh\ntrue"]).warm_up


@pytest.mark.parametrize(
    ("given", "field", "told"),
    [
        ({"vm": {"memry_mib": 512}}, "vm.memry_mib", "did you mean memory_mib"),
        ({"steps": [{"ready": {"log": "up"}}, {"start": "x"}]}, "steps: 1.ready.log", "nothing was started"),
        ({"steps": [{"packages": ["git"]}], "warm_up": ["a\0b"]}, "warm_up", "a line of shell"),
    ],
)
def test_what_a_recipe_in_python_cannot_say_is_refused_by_name(given, field, told) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**given)
    assert caught.value.field == field
    assert told in f"{caught.value} {caught.value.hint}"
    assert Recipe(steps=[{"start": "x"}, {"ready": {"log": "up"}}], vm={"memory_mib": 512}).vm == {"memory_mib": 512}


def test_a_section_that_is_misspelt_is_named(tmp_path) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_text("[templat.web]\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert "did you mean template" in caught.value.hint


def test_secrets_of_a_step_are_looked_for_before_the_freeze() -> None:
    recipe = Recipe(
        steps=[{"run": "a", "secrets": ["TOKEN", "KEY"]}, {"run": "b", "secrets": "TOKEN"}],
        secrets=Secrets(env=("KEY", "OTHER")),
    )
    assert recipe.secrets.env == ("KEY", "OTHER", "TOKEN")
    kept = KeptRecipe.of(recipe, VMConfig())
    assert kept.to_recipe("web").secrets == recipe.secrets


def test_a_recipe_with_steps_is_named_by_what_it_reads(tmp_path) -> None:
    (tmp_path / "note").write_text("one")
    recipe = Recipe(steps=[{"copy": ["note", "/note"]}], folder=tmp_path)
    before = recipe.name
    pinned = recipe.pinned()
    (tmp_path / "note").write_text("two")
    assert (pinned.name, recipe.name == before) == (before, False)
    assert Recipe(steps=[{"run": "a"}]).name != Recipe(warm_up=["a"]).name
    with pytest.raises(ConfigError, match="steps: 1"):
        Recipe(steps=[{"rum": "a"}])


def test_a_recipe_says_what_its_image_is_made_of(tmp_path) -> None:
    text = '[image.app]\nfrom = "oci:in:1"\n[template.web]\nfrom = "dir:root"\n[template.db]\nimage = "app"\n'
    path = write(tmp_path, text)
    web, db = read_template(path, "web")[1], read_template(path, "db")[1]
    assert web.base == ImageConfig(source=f"dir:{tmp_path}/root")
    assert web.vm["image"].startswith("root.from-")
    assert (db.base, db.vm) == (ImageConfig(source=f"oci:{tmp_path}/in:1"), {"image": "app"})
    for recipe in (web, db):
        kept = read_record(KeptRecipe, write_record(KeptRecipe.of(recipe, recipe.apply_to(VMConfig()))))
        assert kept.to_recipe("web").base == recipe.base
        assert kept.config.image == recipe.vm["image"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('from = "python:3.13"', "registry"),
        ("from = 3", "must be text"),
        ('from = "./root"', "is a path"),
        ('from = "dir:root"\nimage = "app"', "one image"),
        ('frm = "dir:root"', "did you mean from"),
    ],
)
def test_what_its_image_cannot_be_made_of_is_refused_by_name(tmp_path, text, told) -> None:
    with pytest.raises(ConfigError) as caught:
        read_template(write(tmp_path, f"[template.web]\n{text}\n"), "web")
    assert caught.value.field.startswith("template.web.")
    assert told in f"{caught.value} {caught.value.hint}"
