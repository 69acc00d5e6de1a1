"""A recipe as a file that a factory names: TOML, with the options of `vmfork template build`.

```
warm_up = ["python3 -c 'import json'"]    each a line of shell, run in order
ready = "test -e /run/app.ready"          tried until it succeeds
secret_paths = ["/root/.netrc"]           while one exists, or a process has a variable of secret_env,
secret_env = ["TOKEN"]                    the machine is not frozen, unless
allow_secrets = false
step_timeout_s = "10m"                    a duration, or a number of seconds
ready_timeout_s = 120
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmfork.adopt.secrets import Secrets
from vmfork.config.loader import name_unknown, read_toml
from vmfork.errors import ConfigError
from vmfork.template.recipe import READY_LIMIT_S, STEP_LIMIT_S, Recipe
from vmfork.units import parse_duration_s

if TYPE_CHECKING:
    from pathlib import Path

_LISTS = ("warm_up", "secret_paths", "secret_env")
_KEYS = (*_LISTS, "ready", "allow_secrets", "step_timeout_s", "ready_timeout_s")


def read_recipe(path: Path) -> Recipe:
    """The recipe in the file at `path`. Raises `ConfigError`, which names the file, and the key that is wrong."""
    given = read_toml(path, field="factory.recipe")
    for key, value in given.items():
        if key not in _KEYS:
            raise name_unknown(f"factory.recipe.{key}", f"{path} has it", "keys of a recipe", _KEYS)
        _check_type(path, key, value)
    secrets = Secrets(
        paths=tuple(given.get("secret_paths", ())),
        env=tuple(given.get("secret_env", ())),
        allowed=given.get("allow_secrets", False),
    )
    return Recipe(
        warm_up=tuple(given.get("warm_up", ())),
        ready=given.get("ready", ""),
        secrets=secrets,
        step_timeout_s=_read_duration("step_timeout_s", given.get("step_timeout_s", STEP_LIMIT_S)),
        ready_timeout_s=_read_duration("ready_timeout_s", given.get("ready_timeout_s", READY_LIMIT_S)),
    )


def _check_type(path: Path, key: str, value: Any) -> None:
    if key in _LISTS:
        right, needed = isinstance(value, list) and all(isinstance(one, str) for one in value), "a list of strings"
    elif key == "allow_secrets":
        right, needed = isinstance(value, bool), "true or false"
    elif key == "ready":
        right, needed = isinstance(value, str), "a string"
    else:
        right = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        needed = "a duration, or a number of seconds"
    if not right:
        raise ConfigError(f"factory.recipe.{key}", value, f"must be {needed} (from {path})")


def _read_duration(key: str, value: float | str) -> float:
    seconds = parse_duration_s(value, field=f"factory.recipe.{key}") if isinstance(value, str) else float(value)
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"factory.recipe.{key}", value, f"{value!r} is not a positive number of seconds")
    return seconds
