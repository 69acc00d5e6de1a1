"""A command that exists can be sent: what cannot is refused when it is made."""

from __future__ import annotations

import pytest

from vmfork.errors import ConfigError
from vmfork.wire.command import Command, shell_argv
from vmfork.wire.message import exec_request

# Half a surrogate pair: a str in Python, and no text in any encoding.
HALF = "\ud800"


@pytest.mark.parametrize("argv", ["a line of shell", [], (), ["a", "b\0"], ["a", b"b"], ["a", None], [HALF]])
def test_arguments_that_are_none(argv) -> None:
    with pytest.raises(ConfigError) as refused:
        Command(argv)
    assert refused.value.field == "argv"


@pytest.mark.parametrize("env", [{"": "a"}, {"A=B": "c"}, {"A\0": "b"}, {"A": "b\0"}, {"A": 1}, {1: "a"}, {"A": HALF}])
def test_variables_that_are_none(env) -> None:
    with pytest.raises(ConfigError) as refused:
        Command(["a"], env=env)
    assert refused.value.field == "env"


@pytest.mark.parametrize("name", ["cwd", "user"])
@pytest.mark.parametrize("value", ["a\0b", None, HALF])
def test_a_place_that_is_none(name, value) -> None:
    with pytest.raises(ConfigError) as refused:
        Command(["a"], **{name: value})
    assert refused.value.field == name


def test_what_was_checked_stays_as_it_was() -> None:
    argv, env = ["a"], {"K": "V"}
    command = Command(argv, env=env)
    argv.append("b\0")
    env["K"] = "W\0"
    assert (command.argv, command.env) == (("a",), {"K": "V"})


def test_the_environment_is_not_shown() -> None:
    assert "sesame" not in repr(Command(["a"], env={"TOKEN": "sesame"}))


def test_a_name_that_is_no_utf8_can_be_sent() -> None:
    assert b"\xff" in exec_request(1, Command(shell_argv("cat \udcff")))[0]
