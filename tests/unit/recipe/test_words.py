"""The words of a recipe: every one is read and written as it was, and what is none is refused by its name."""

from __future__ import annotations

import pytest

from vmfork.errors import ConfigError
from vmfork.network.policy import Allow
from vmfork.recipe.step import Copy, Env, Hooks, Packages, Pip, Ready, Run, Start, User, Workdir, describe
from vmfork.recipe.surroundings import Surroundings
from vmfork.recipe.words import read_ready, read_steps

EVERY_WORD = [
    {"packages": ["git", "make"]},
    {"pip": ["flask==3.1.*", "requirements.txt"], "timeout": 30.0},
    {"copy": ["app/", "/srv/app"]},
    {"hooks": {"before_freeze": ["hooks/forget"], "after_fork": ["hooks/10-key", "hooks/20-tell"]}},
    {"env": {"APP": "1"}},
    {"workdir": "/srv/app"},
    {"user": "www-data"},
    {"run": "make", "network": ["api.example.org"], "secret_files": {"/run/token": "token.txt"}, "timeout": 5.0},
    {"run": "true", "network": "all", "secrets": ["TOKEN", "KEY"]},
    {"start": "python3 main.py"},
    {"ready": {"port": 8000}},
    {"ready": {"command": "curl localhost", "network": "all", "timeout": 9.0}},
    {"ready": {"file": "/run/ready"}},
    {"ready": {"log": "^listening"}},
    {"ready": "true"},
]


def test_every_word_is_a_step_and_comes_back_as_it_was() -> None:
    steps = read_steps(EVERY_WORD)
    assert [type(step) for step in steps] == [
        Packages, Pip, Copy, Hooks, Env, Workdir, User, Run, Run, Start, Ready, Ready, Ready, Ready, Ready,
    ]  # fmt: skip
    assert [step.to_words() for step in steps] == EVERY_WORD
    assert read_steps([step.to_words() for step in steps]) == steps
    assert steps[7].network == Allow("api.example.org")


def test_the_short_ways_of_a_word_stand_for_the_same() -> None:
    assert read_steps([{"pip": "flask"}, {"run": "x", "timeout": "1m"}]) == read_steps(
        [{"pip": ["flask"]}, {"run": "x", "timeout": 60}]
    )
    assert read_steps([{"hooks": {"after_fork": "a"}}]) == read_steps([{"hooks": {"after_fork": ["a"]}}])
    assert read_ready("true", field="ready") == read_ready({"command": "true"}, field="ready")


@pytest.mark.parametrize(
    ("given", "field", "told"),
    [
        ({"rum": "make"}, "steps: 1.rum", "did you mean run"),
        ({"run": "make", "timout": 3}, "steps: 1.timout", "did you mean timeout"),
        ({"copy": ["a", "/a"], "network": "all"}, "steps: 1.network", "keys there are copy, timeout"),
        ({"run": "make", "pip": "flask"}, "steps: 1", "this one has pip and run"),
        ({}, "steps: 1", "this one has none"),
        ("make", "steps: 1", "is no table"),
        ({"run": ""}, "steps: 1.run", "not empty"),
        ({"run": "a\0b"}, "steps: 1.run", "must be text"),
        ({"run": "#!pyhton\nimport json"}, "steps: 1.language", "'pyhton' is not known did you mean python"),
        ({"run": "#!python\nimport json", "secrets": ["TOKEN"]}, "steps: 1.secrets", "would keep them"),
        ({"run": "#!python\n'\udcff'"}, "steps: 1.code", "cannot be written as UTF-8"),
        ({"copy": ["app"]}, "steps: 1.copy", "then where to"),
        ({"copy": "app"}, "steps: 1.copy", "then where to"),
        ({"copy": ["app", "srv"]}, "copy", "not absolute"),
        ({"hooks": "hooks/reseed"}, "steps: 1.hooks", "such as {after_fork ="),
        ({"hooks": {}}, "hooks", "names no hook"),
        ({"hooks": {"after_frok": "x"}}, "steps: 1.hooks.after_frok", "did you mean after_fork"),
        ({"hooks": {"after_fork": 5}}, "steps: 1.hooks.after_fork", "list of texts"),
        ({"hooks": {"after_fork": "hooks/.reseed"}}, "hooks", "would be passed over"),
        ({"hooks": {"before_freeze": ["a", "hooks/b~"]}}, "hooks", "'hooks/b~' would be passed over"),
        ({"hooks": {"after_fork": ["a/x", "b/x"]}}, "hooks", "two hooks have the name 'x'"),
        ({"hooks": {"after_fork": "x"}, "timeout": 5}, "steps: 1.timeout", "keys there are hooks"),
        ({"pip": []}, "steps: 1.pip", "list of texts"),
        ({"pip": [5]}, "steps: 1.pip", "must be text"),
        ({"pip": ["-e", "."]}, "pip", "'-e' is no requirement"),
        ({"pip": "-r more.txt"}, "pip", "name files of requirements by themselves"),
        ({"packages": ["Not A Package"]}, "image.packages", "not a Debian package"),
        ({"env": {"A": 1}}, "steps: 1.env.A", 'in quotes: "1"'),
        ({"env": {"A=B": "1"}}, "env", "not the name"),
        ({"workdir": "srv"}, "workdir", "not absolute"),
        ({"ready": {}}, "steps: 1.ready", "none is given"),
        ({"ready": {"port": 1, "file": "/x"}}, "steps: 1.ready", "port and file are given"),
        ({"ready": {"port": 70000}}, "steps: 1.ready.port", "no port"),
        ({"ready": {"prot": 80}}, "steps: 1.ready.prot", "did you mean port"),
        ({"ready": {"log": "("}}, "steps: 1.ready.log", "no regular expression"),
        ({"ready": {"file": "x"}}, "steps: 1.ready.file", "not absolute"),
        ({"run": "x", "timeout": "soon"}, "steps: 1.run.timeout", "not a duration"),
        ({"run": "x", "timeout": 0}, "steps: 1.run.timeout", "not a positive number"),
        ({"run": "x", "network": "some"}, "steps: 1.run.network", "no policy"),
        ({"run": "x", "network": ["no name!"]}, "network", "no name!"),
        ({"run": "x", "network": ["a.example"], "network_log_only": 5}, "run.network_log_only", "true or false"),
        ({"run": "x", "network_log_only": True}, "steps: 1.run.network_log_only", "is of a list"),
        ({"ready": {"port": 1, "network": "all", "network_log_only": True}}, "ready.network_log_only", "is of a list"),
        ({"run": "x", "secret_files": {"token": "t"}}, "secret_files", "not absolute"),
        ({"run": "x", "secrets": {"TOKEN": "t"}}, "steps: 1.run.secrets", "list of texts"),
        ({"run": "x", "secrets": ["A=B"]}, "env", "not the name"),
        ({"start": "x", "secrets": ["TOKEN"]}, "steps: 1.secrets", "keys there are start"),
    ],
)
def test_what_is_no_step_is_refused_by_its_name(given, field, told) -> None:
    with pytest.raises(ConfigError) as caught:
        read_steps([given])
    if not caught.value.field.endswith(field):
        pytest.fail(f"{caught.value.field} is not {field}")
    assert told in f"{caught.value} {caught.value.hint}"


def test_packages_come_first_since_the_machine_boots_them() -> None:
    with pytest.raises(ConfigError, match="packages come after another step"):
        read_steps([{"run": "true"}, {"packages": ["git"]}])


def test_a_step_is_named_by_its_word_and_the_values_of_variables_are_not_shown() -> None:
    shown = [describe(step) for step in read_steps(EVERY_WORD)]
    assert shown[2] == "copy app/ /srv/app"
    assert shown[3] == "hooks hooks/forget hooks/10-key hooks/20-tell"
    assert shown[4] == "env APP"
    assert shown[10] == "ready port 8000"
    assert len(describe(Run(line="x" * 500))) < 80


def test_programs_start_with_what_the_steps_before_said() -> None:
    found = Surroundings(env={"A": "0"}).after_all(read_steps(EVERY_WORD))
    assert (found.env, found.cwd, found.user) == ({"A": "0", "APP": "1"}, "/srv/app", "www-data")
    command = found.command("make", {"http_proxy": "here", "APP": "0"})
    assert (command.env, command.cwd, command.user) == (
        {"http_proxy": "here", "A": "0", "APP": "1"},
        "/srv/app",
        "www-data",
    )
    assert found.command("make", {}, secrets={"APP": "s"}).env == {"A": "0", "APP": "s"}
    assert found.env["APP"] == "1"
