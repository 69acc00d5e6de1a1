"""A recipe in Python has the words that one in a file has: each means the same, and is refused in the same way."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace

import pytest

from vmfork import aio
from vmfork.config import ImageConfig, VMConfig
from vmfork.errors import ConfigError
from vmfork.network.policy import Allow
from vmfork.recipe.step import Ready, describe
from vmfork.template import build as building
from vmfork.template.recipe import FROM, WORDS, Recipe
from vmfork.template.recipe_file import read_template
from vmfork.template.recipe_machine import FIELDS, SIZES

STEPS = [
    {"pip": ["requirements.txt", "flask==3.1.*"], "timeout": "5m"},
    {"copy": ["app/", "/srv/app"]},
    {"hooks": {"before_freeze": "reseed"}},
    {"env": {"APP": "1"}},
    {"workdir": "/srv/app"},
    {"user": "www-data"},
    {"run": "make", "network": ["api.example.org"], "secrets": ["TOKEN"], "secret_files": {"/run/t": "token.txt"}},
    {"start": "main"},
    {"ready": {"port": 8000}},
]
# Each word of a section, as TOML and in Python.
SAID = [
    *((f"steps = [{toml}]", {"steps": [step]}) for step, toml in zip(
        STEPS,
        [
            '{pip = ["requirements.txt", "flask==3.1.*"], timeout = "5m"}',
            '{copy = ["app/", "/srv/app"]}',
            '{hooks = {before_freeze = "reseed"}}',
            '{env = {APP = "1"}}',
            '{workdir = "/srv/app"}',
            '{user = "www-data"}',
            '{run = "make", network = ["api.example.org"], secrets = ["TOKEN"], '
            'secret_files = {"/run/t" = "token.txt"}}',
            '{start = "main"}',
            "{ready = {port = 8000}}",
        ],
        strict=True,
    )),
    ('steps = [{packages = ["git"]}]', {"steps": [{"packages": ["git"]}]}),
    ('hooks = {after_fork = "reseed"}', {"hooks": {"after_fork": "reseed"}}),
    ('start = "main"', {"start": "main"}),
    ("ready = {port = 8000}", {"ready": {"port": 8000}}),
    ('ready = {command = "true", network = "all"}', {"ready": {"command": "true", "network": "all"}}),
    ('ready = {file = "/run/up", timeout = "9s"}', {"ready": {"file": "/run/up", "timeout": "9s"}}),
    ('start = "main"\nready = {log = "^up"}', {"start": "main", "ready": {"log": "^up"}}),
    ('ready = "true"', {"ready": "true"}),
    ('ready_timeout_s = "3m"\nready = {port = 1}', {"ready_timeout_s": "3m", "ready": {"port": 1}}),
    ('warm_up = ["one", "two"]\nstep_timeout_s = 7', {"warm_up": ["one", "two"], "step_timeout_s": 7}),
    ('secret_paths = ["/root/key"]', {"secret_paths": ["/root/key"]}),
    ('secret_env = ["TOKEN"]\nallow_secrets = true', {"secret_env": ["TOKEN"], "allow_secrets": True}),
    ('from = "dir:app"', {"from_": "dir:app"}),
    ('from = "registry.example/team/app:1"', {"from_": "registry.example/team/app:1"}),
    ('memory = "512M"', {"memory": "512M"}),
    ('memory = "512M"\nmax_memory = "1G"', {"memory": 512, "max_memory": "1G"}),
    ('disk = "2G"', {"disk": "2G"}),
    ('fork_timeout_s = "1m"\nimage = "tools"', {"fork_timeout_s": "1m", "image": "tools"}),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "app").mkdir()
    for name in ("app/main.py", "reseed", "token.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "requirements.txt").write_text("requests\n")
    return tmp_path


def read(folder, text: str) -> Recipe:
    path = folder / "vmfork.toml"
    path.write_text(f"[template.web]\n{text}\n")
    return read_template(path, "web")[1]


def assert_same(one: Recipe, other: Recipe) -> None:
    assert one == other
    assert one.pinned().pins == other.pinned().pins
    assert one.name == other.name
    assert one.apply_to(VMConfig()) == other.apply_to(VMConfig())


@pytest.mark.parametrize(("text", "words"), SAID)
def test_a_word_makes_the_same_template_in_a_file_and_in_python(folder, text, words) -> None:
    in_file = read(folder, text)
    assert in_file != Recipe()
    assert_same(in_file, Recipe(**words, folder=folder))
    # A table that was read elsewhere, of which Python cannot write one key.
    table = {FROM if key == "from_" else key: value for key, value in words.items()}
    assert_same(in_file, Recipe(**table, folder=folder))


def test_every_word_that_a_section_has_was_tried() -> None:
    tried = {key for _, words in SAID for key in words} | {step for each in STEPS for step in each}
    assert {*WORDS, "from_", *SIZES} <= tried


@pytest.mark.parametrize("field", fields(VMConfig), ids=lambda field: field.name)
def test_every_field_of_the_machine_is_a_word_too(folder, field) -> None:
    assert field.name in FIELDS
    value = 1 if field.default is None else field.default
    in_file = read(folder, f"{field.name} = {json.dumps(value)}")
    assert in_file.vm == {field.name: value}
    assert_same(in_file, Recipe(**{field.name: value}))
    assert_same(in_file, Recipe(vm={field.name: value}))


@pytest.mark.parametrize(
    ("text", "words", "field", "told"),
    [
        ("memry = 1", {"memry": 1}, "memry", "did you mean memory"),
        ('frm = "x"', {"frm": "x"}, "frm", "did you mean from"),
        ("step = []", {"step": []}, "step", "did you mean steps"),
        ('steps = [{rum = "x"}]', {"steps": [{"rum": "x"}]}, "steps: 1.rum", "did you mean run"),
        ("steps = 5", {"steps": 5}, "steps", "must be a list of steps"),
        ("hooks = {}", {"hooks": {}}, "hooks", "names no hook"),
        ('hooks = {after = "x"}', {"hooks": {"after": "x"}}, "hooks.after", "did you mean after_fork"),
        ('start = ""', {"start": ""}, "start", "must be text, and not empty"),
        ("ready = 5", {"ready": 5}, "ready", "must be a string, which is a command, or a table"),
        ("ready = {}", {"ready": {}}, "ready", "none is given"),
        ("ready = {prot = 1}", {"ready": {"prot": 1}}, "ready.prot", "did you mean port"),
        ("ready = {port = 0}", {"ready": {"port": 0}}, "ready.port", "0 is no port"),
        ('ready = {log = "("}', {"ready": {"log": "("}}, "ready.log", "no regular expression"),
        ('ready = {log = "up"}', {"ready": {"log": "up"}}, "steps: 1.ready.log", "nothing was started"),
        ('warm_up = "echo"', {"warm_up": "echo"}, "warm_up", "a list of strings"),
        ("warm_up = [5]", {"warm_up": [5]}, "warm_up", "a list of strings"),
        ('warm_up = ["a\\u0000b"]', {"warm_up": ["a\0b"]}, "warm_up", "a line of shell"),
        ("allow_secrets = 1", {"allow_secrets": 1}, "allow_secrets", "true or false"),
        ("step_timeout_s = 0", {"step_timeout_s": 0}, "step_timeout_s", "not a positive number"),
        ('ready_timeout_s = "soon"', {"ready_timeout_s": "soon"}, "ready_timeout_s", "not a duration"),
        ('secret_paths = ["x"]', {"secret_paths": ["x"]}, "secret_paths", "not an absolute path"),
        ('secret_env = ["A=B"]', {"secret_env": ["A=B"]}, "secret_env", "not the name"),
        ('memory = "much"', {"memory": "much"}, "memory", "'much' is not a size"),
        ("disk = true", {"disk": True}, "disk", "True is not a size"),
        ('memory = "1G"\nmemory_mib = 5', {"memory": "1G", "memory_mib": 5}, "memory", "memory_mib says it too"),
        ('boot_timeout_s = "soon"', {"boot_timeout_s": "soon"}, "boot_timeout_s", "not a duration"),
        ('from = ""', {FROM: ""}, "from", "must be text that says where"),
        ('from = "python:3"', {FROM: "python:3"}, "from", "registry"),
        ('from = "dir:x"\nimage = "a"', {FROM: "dir:x", "image": "a"}, "from", "a recipe has one image"),
    ],
)
def test_what_no_recipe_can_say_is_refused_alike(folder, text, words, field, told) -> None:
    with pytest.raises(ConfigError) as in_file:
        read(folder, text)
    with pytest.raises(ConfigError) as in_python:
        Recipe(**words, folder=folder)
    assert (in_file.value.field, in_python.value.field) == (f"template.web.{field}", field)
    assert (in_file.value.value, in_python.value.code) == (in_python.value.value, in_file.value.code)
    assert told in f"{in_python.value} {in_python.value.hint}"
    assert told in f"{in_file.value} {in_file.value.hint}"
    assert str(folder / "vmfork.toml") in str(in_file.value)


@pytest.mark.parametrize(
    ("words", "field", "told"),
    [
        ({"cpus": 0}, "vm.cpus", "0 is out of range"),
        ({"vm": {"cpus": 0}}, "vm.cpus", "0 is out of range"),
        ({"vm": {"cpus": 1}, "cpus": 2}, "cpus", "vm says it too"),
        ({"vm": {"memory_mib": 512}, "memory": "1G"}, "memory", "vm says it too"),
        ({"from_": "dir:x", "vm": {"image": "a"}}, "from_", "a recipe has one image"),
        ({"from_": "python:3"}, "from_", "registry"),
        ({"fodler": "."}, "fodler", "did you mean folder"),
        ({"netwrok": "all"}, "netwrok", "did you mean network"),
    ],
)
def test_what_python_alone_can_say_wrongly_is_refused_by_its_name(words, field, told) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**words)
    assert caught.value.field == field
    assert told in f"{caught.value} {caught.value.hint}"


def test_the_words_beside_the_steps_are_the_last_steps_once() -> None:
    recipe = Recipe(
        steps=[{"run": "make"}], hooks={"after_fork": "x"}, start="main", ready={"port": 8000}, warm_up=["last"]
    )
    done = ["run make", "hooks x", "start main", "ready port 8000", "run last"]
    assert [describe(step) for step in recipe.all_steps] == done
    again = replace(recipe, vm={"cpus": 2})
    assert (again.all_steps, again.vm) == (recipe.all_steps, {"cpus": 2})
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_a_table_that_is_waited_for_has_the_limit_and_the_network_of_a_plain_one_unless_it_says_its_own() -> None:
    listed = Allow("api.example.org")
    recipe = Recipe(ready={"command": "true"}, ready_timeout_s="5m", network=listed)
    assert recipe.steps == (Ready(condition="command", value="true", timeout_s=300.0, network=listed),)
    recipe = Recipe(ready={"port": 1, "timeout": 9, "network": "none"}, ready_timeout_s=300, network="all")
    assert recipe.steps == (Ready(condition="port", value="1", timeout_s=9.0),)


def test_how_far_a_machine_may_grow_is_looked_at_where_its_size_is_known() -> None:
    recipe = Recipe(max_memory="2024M")
    assert recipe.apply_to(VMConfig(memory_mib=1000)).max_memory_mib == 2024
    with pytest.raises(ConfigError, match="in blocks of 128 MiB"):
        recipe.apply_to(VMConfig())
    with pytest.raises(ConfigError, match="in blocks of 128 MiB"):
        Recipe(memory="256M", max_memory="300M")


@pytest.fixture
def built(monkeypatch):
    """What a build, or the ensuring, of a template was asked for: its configuration and its recipe."""
    asked = []

    async def build(_name, config, recipe=None, **options):
        asked.append((config, recipe or options["recipe"]))
        raise ConfigError("name", "web", "enough was told")

    for name in ("build_template", "ensure_template"):
        monkeypatch.setattr(building, name, build)
    return asked


async def ask(built, call, *args, **given) -> tuple[VMConfig, Recipe]:
    with pytest.raises(ConfigError, match="enough was told"):
        await call("web", *args, **given)
    return built.pop()


@pytest.mark.parametrize(("text", "words"), SAID)
async def test_a_build_is_told_each_word_as_a_recipe_is(folder, built, text, words) -> None:
    given = {**words, "folder": folder}
    if {*words} & {*FIELDS}:  # for which a build has a configuration
        given = {"recipe": Recipe(**words)}
    for key in ("step_timeout_s", "ready_timeout_s"):  # which a build takes as seconds
        given |= {key: getattr(Recipe(**{key: words[key]}), key)} if key in words else {}
    config, recipe = await ask(built, aio.Template.build, **given)
    in_file = read(folder, text)
    assert_same(recipe, in_file)
    assert config == in_file.apply_to(VMConfig())


async def test_what_a_build_is_told_of_the_size_comes_before_its_configuration(built) -> None:
    config, _ = await ask(
        built, aio.Template.build, VMConfig(cpus=2, memory_mib=320), memory="512M", max_memory=1024, disk="1G"
    )
    assert config == VMConfig(cpus=2, memory_mib=512, max_memory_mib=1024, disk_mib=1024)
    with pytest.raises(ConfigError, match="says all of how"):
        await aio.Template.build("web", recipe=Recipe(start="main"), memory="1G")


FILE = """
[vm]
cpus = 2
memory_mib = "320M"
image = "tools"
[image]
packages = ["git"]
[image.tools]
packages = ["make"]
[template.web]
memory = "512M"
ready = "true"
[template.plain]
image = "default"
"""


async def test_a_file_says_of_its_recipe_what_it_says_of_every_machine_and_image(tmp_path, built, monkeypatch) -> None:
    """As for the command: tests/unit/cli/test_template.py."""
    monkeypatch.setenv("VMFORK_VM_CPUS", "3")
    path = tmp_path / "vmfork.toml"
    path.write_text(FILE)
    for call in (aio.Template.build, aio.Template.ensure):
        config, recipe = await ask(built, call, recipe=path)
        assert config == VMConfig(cpus=2, memory_mib=512, image="tools")
        assert (recipe.base, recipe.vm) == (ImageConfig(packages=("make",)), {"memory_mib": 512})
        config, recipe = await ask(built, call, VMConfig(cpus=4), recipe=path)
        assert config == VMConfig(cpus=4, memory_mib=512)
        assert recipe.base == ImageConfig(packages=("git",))
    with pytest.raises(ConfigError, match="enough was told"):
        await aio.Template.ensure("plain", recipe=path)
    config, recipe = built.pop()
    assert (config, recipe.base) == (
        VMConfig(cpus=2, memory_mib=320, image="default"),
        ImageConfig(packages=("git",)),
    )


async def test_a_file_that_says_nothing_of_machines_leaves_the_template_as_it_is(tmp_path, built) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_text('[template.web]\nready = "true"\n')
    assert (await ask(built, aio.Template.ensure, recipe=path))[0] is None
    assert (await ask(built, aio.Template.build, recipe=path))[0] == VMConfig()


async def test_what_a_file_says_wrongly_of_machines_is_told_with_its_name(tmp_path) -> None:
    path = tmp_path / "vmfork.toml"
    path.write_text('[vm]\ncpus = 0\n[template.web]\nready = "true"\n')
    with pytest.raises(ConfigError, match=r"vm\.cpus: 0 is out of range .*vmfork\.toml"):
        await aio.Template.ensure("web", recipe=path)


async def test_a_table_in_the_place_of_a_recipe_is_told_what_makes_it_one() -> None:
    with pytest.raises(ConfigError, match="is no recipe") as caught:
        await aio.Template.ensure("web", recipe={"steps": []})
    assert "Recipe(**table)" in caught.value.hint
