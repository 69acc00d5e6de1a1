"""A program to be run in a guest, as a value."""

from __future__ import annotations

import os
import signal as signals
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vmfork.config.program import ProgramLimits, is_whole
from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHELL = "/bin/sh"
# What a program with a terminal finds in TERM, where nobody says more. Every Debian has its description.
TERM = "xterm-256color"

_LAST_SIGNAL = 64  # _NSIG, signal(7)
_MOST_CELLS = 65_535  # struct winsize, ioctl_tty(2)


class Window(NamedTuple):
    """The size of a terminal, in characters."""

    rows: int
    columns: int


NO_LIMITS = ProgramLimits()


@dataclass(frozen=True, slots=True)
class Command:
    """What EXEC asks for. The agent's twin of it is `struct command` (guest/command.h).

    `argv` goes to the program as it is; no shell reads it. The program is looked up in the PATH it is given. `env` is
    added to the agent's environment, or stands alone with `clean_env`. `cwd` is by default the user's home, or `/`.
    Without `stdin` the program reads `/dev/null`. With `window` it has a terminal of that size in the place of pipes,
    and TERM says which kind, unless `env` does. Raises `ConfigError` when a name or a value is not text, or holds a
    NUL, and for a window that none has.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str = ""
    user: str = ""
    stdin: bool = False
    clean_env: bool = False
    window: Window | None = None
    limits: ProgramLimits = NO_LIMITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "argv", _check_argv(self.argv))
        object.__setattr__(self, "env", check_env(self.env))
        if self.window is not None:
            object.__setattr__(self, "window", check_window(*self.window))
            object.__setattr__(self, "env", {"TERM": TERM, **self.env})
        for name in ("cwd", "user"):
            if not _is_text(getattr(self, name)):
                raise ConfigError(name, getattr(self, name), "must be text without NUL")


def shell_argv(script: str) -> tuple[str, ...]:
    """The arguments that make the guest's shell run `script`."""
    return SHELL, "-c", script


def find_signal(signal: int | str) -> int:
    """Its number, of a number or a name with or without SIG. Raises `ConfigError` when Linux has no such signal."""
    if isinstance(signal, str):
        name = signal.upper()
        found = signals.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
        number = 0 if found is None else int(found)
    else:
        number = signal
    if not is_whole(number, _LAST_SIGNAL):
        hint = f"give a name such as SIGTERM or INT, or a number from 1 to {_LAST_SIGNAL}"
        raise ConfigError("signal", signal, f"{signal!r} is not a signal", hint=hint)
    return number


def check_window(rows: int, columns: int) -> Window:
    """A terminal's size. Raises `ConfigError` when none can have it."""
    for name, value in (("rows", rows), ("columns", columns)):
        if not is_whole(value, _MOST_CELLS):
            raise ConfigError(name, value, f"{value!r} is not a whole number from 1 to {_MOST_CELLS}")
    return Window(rows, columns)


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
