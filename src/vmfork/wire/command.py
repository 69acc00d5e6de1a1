"""A program to be run in a guest, as a value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHELL = "/bin/sh"


@dataclass(frozen=True, slots=True)
class Command:
    """What EXEC asks for. The agent's twin of it is `struct command` (guest/command.h).

    `argv` goes to the program as it is; no shell reads it. The program is looked up in the PATH it is given. `env` is
    added to the agent's environment, or stands alone with `clean_env`. `cwd` is by default the user's home, or `/`.
    Without `stdin` the program reads `/dev/null`. Raises `ConfigError` when a name or a value is not text, or holds a
    NUL.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    user: str = ""
    stdin: bool = False
    clean_env: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "argv", _check_argv(self.argv))
        object.__setattr__(self, "env", check_env(self.env))
        for name in ("cwd", "user"):
            if not _is_text(getattr(self, name)):
                raise ConfigError(name, getattr(self, name), "must be text without NUL")


def shell_argv(script: str) -> tuple[str, ...]:
    """The arguments that make the guest's shell run `script`."""
    return SHELL, "-c", script


def check_env(env: Mapping[str, str]) -> dict[str, str]:
    """A copy of `env`. Raises `ConfigError` when a name or a value cannot be an environment variable's."""
    checked = {}
    for key, value in env.items():
        if not _is_text(key) or not key or "=" in key:
            reason = f"{key!r} is not the name of an environment variable"
            raise ConfigError("env", key, reason, hint="a name is text without = and NUL, and not empty")
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if not _is_text(text):
            raise ConfigError("env", value, f"the value of {key} must be text without NUL")
        checked[key] = text
    return checked


def _check_argv(argv: Sequence[str]) -> tuple[str, ...]:
    if isinstance(argv, str):
        raise ConfigError("argv", argv, "a command is a list of strings", hint="use shell() for a line of shell")
    if not argv:
        raise ConfigError("argv", argv, "a command needs at least the name of a program")
    for part in argv:
        if not _is_text(part):
            raise ConfigError("argv", part, "an argument must be text without NUL")
    return tuple(argv)


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")  # half a surrogate pair is a str in Python, and no text anywhere else
    except UnicodeEncodeError:
        return False
    return True
