"""A recipe as a file, in TOML: a section of `vmfork.toml`, or a file of its own that a factory names.

```
[template.web]                            of vmfork.toml; a factory's own file has the same keys without a section
image = "default"                         of the machine: fields of [vm]; `memory`, `max_memory` and `disk` are sizes
memory = "512M"
steps = [{pip = "requirements.txt"}, {copy = ["app/", "/srv/app"]}]       see recipe/words.py
hooks = {after_fork = "hooks/reseed"}     a step behind them,
start = "python3 /srv/app/main.py"        another, and
ready = {port = 8000}                     the last; a text is a command

warm_up = ["python3 -c 'import json'"]    short form of `run`, behind the steps
secret_paths = ["/root/.netrc"]           while one exists, or a process has a variable of secret_env,
secret_env = ["TOKEN"]                    the machine is not frozen, unless
allow_secrets = false
step_timeout_s = "10m"                    of warm_up and a plain ready: a duration, or a number of seconds
ready_timeout_s = 120
```
Files that the steps read lie in and below the folder of this file.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from vmfork.adopt.secrets import Secrets
from vmfork.config import VMConfig
from vmfork.config.loader import RECIPES, check_section, name_unknown, read_images, read_toml
from vmfork.errors import ConfigError
from vmfork.recipe.step import READY_LIMIT_S, STEP_LIMIT_S
from vmfork.recipe.words import read_hooks, read_ready, read_start, read_steps
from vmfork.template.recipe import Recipe, base_of
from vmfork.units import parse_duration_s, parse_seconds, parse_size_mib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmfork.config import ImageConfig

_LISTS = ("warm_up", "secret_paths", "secret_env")
_DURATIONS = {"step_timeout_s": STEP_LIMIT_S, "ready_timeout_s": READY_LIMIT_S}
_KEYS = ("steps", "hooks", "start", "ready", *_LISTS, "allow_secrets", *_DURATIONS)
# Beside the fields of a machine: the image, by what it is made of in the place of its name.
_FROM = "from"
_MACHINE = tuple(field.name for field in fields(VMConfig))
# Sizes as people write them, beside the fields that they are.
_SIZES = {"memory": "memory_mib", "max_memory": "max_memory_mib", "disk": "disk_mib"}


def read_recipe(path: Path) -> Recipe:
    """The recipe in the factory's file at `path`. Raises `ConfigError`, naming the file, and the key that is wrong."""
    given = read_toml(path, field="factory.recipe")
    for key in given:
        if key not in _KEYS:
            raise name_unknown(f"factory.recipe.{key}", f"{path} has it", "keys of a recipe", _KEYS)
    return _read(given, path, prefix="factory.recipe")


def read_template(path: Path, name: str = "") -> tuple[str, Recipe]:
    """The recipe of [template.NAME] in the file at `path`, and its name: where none is given, there is one alone.

    Raises `ConfigError`, which names the file, and the key that is wrong.
    """
    body = read_toml(path, field="recipe")
    for section in body:
        check_section(section, path)
    sections = body.get(RECIPES, {})
    if not isinstance(sections, dict) or not all(isinstance(each, dict) for each in sections.values()):
        raise ConfigError(RECIPES, sections, f"must be sections, [{RECIPES}.NAME] (from {path})")
    known = tuple(sections)
    if not name and len(known) != 1:
        told = f"it has {', '.join(known)}" if known else "it has none"
        raise ConfigError("name", name, f"which template of {path} is not said: {told}", hint="give its name")
    name = name or known[0]
    if name not in sections:
        raise name_unknown(f"{RECIPES}.{name}", f"{path} has no such section", "templates there", known or ("none",))
    given = sections[name]
    for key in given:
        if key not in (*_KEYS, _FROM, *_MACHINE, *_SIZES):
            where, known = f"{path} has it", (*_KEYS, _FROM, *_SIZES, *_MACHINE)
            raise name_unknown(f"{RECIPES}.{name}.{key}", where, "keys of a recipe", known)
    images = read_images(body, path)
    return name, _read(given, path, prefix=f"{RECIPES}.{name}", images=images)


def _read(
    given: Mapping[str, Any], path: Path, *, prefix: str, images: Mapping[str, ImageConfig] | None = None
) -> Recipe:
    try:
        recipe = _read_keys(given, path, prefix)
        return replace(recipe, **_read_base(given, path, prefix, recipe.vm, images or {}))
    except ConfigError as error:
        if str(path) in error.reason:
            raise
        raise ConfigError(error.field, error.value, f"{error.reason} (from {path})", hint=error.hint) from None


def _read_keys(given: Mapping[str, Any], path: Path, prefix: str) -> Recipe:
    for key in _LISTS:
        listed = given.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise ConfigError(f"{prefix}.{key}", listed, "must be a list of strings")
    if not isinstance(given.get("allow_secrets", False), bool):
        raise ConfigError(f"{prefix}.allow_secrets", given["allow_secrets"], "must be true or false")
    steps = list(read_steps(given.get("steps", ()), field=f"{prefix}.steps"))
    if "hooks" in given:
        steps.append(read_hooks(given["hooks"], field=f"{prefix}.hooks"))
    if "start" in given:
        steps.append(read_start(given["start"], field=f"{prefix}.start"))
    ready = given.get("ready", "")
    if not isinstance(ready, str):
        steps.append(read_ready(ready, field=f"{prefix}.ready"))
    limits = {key: parse_seconds(given.get(key, most), field=f"{prefix}.{key}") for key, most in _DURATIONS.items()}
    return Recipe(
        steps=tuple(steps),
        folder=path.parent,
        vm=_read_machine(given, prefix),
        warm_up=tuple(given.get("warm_up", ())),
        ready=ready if isinstance(ready, str) else "",
        secrets=Secrets(
            paths=tuple(given.get("secret_paths", ())),
            env=tuple(given.get("secret_env", ())),
            allowed=given.get("allow_secrets", False),
        ),
        step_timeout_s=limits["step_timeout_s"],
        ready_timeout_s=limits["ready_timeout_s"],
    )


def _read_base(
    given: Mapping[str, Any], path: Path, prefix: str, machine: Mapping[str, Any], images: Mapping[str, ImageConfig]
) -> dict[str, Any]:
    """The fields of a recipe that say what its image is made of: `from`, else what the file says of that image."""
    if _FROM not in given:
        base = images.get(machine.get("image", ""))
        return {"images": tuple(images)} if base is None else {"base": base}
    field, source = f"{prefix}.{_FROM}", given[_FROM]
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(field, source, "must be text that says where a container image is")
    if "image" in given:
        raise ConfigError(field, source, "a recipe has one image: image names it, or from says what it is made of")
    try:
        base, named = base_of(source, path.parent)
    except ConfigError as error:
        raise ConfigError(field, source, error.reason, hint=error.hint) from None
    return {"base": base, "vm": {**machine, **named}}


def _read_machine(given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The fields of the machine that the recipe says. Raises `ConfigError` for a value that none can have."""
    found = {key: given[key] for key in _MACHINE if key in given}
    for key, name in _SIZES.items():
        if key in given:
            if name in found:
                raise ConfigError(f"{prefix}.{key}", given[key], f"{name} says it too", hint="give one of the two")
            found[name] = given[key]
    for key, value in found.items():
        if key.endswith("_mib") and value is not None:
            found[key] = parse_size_mib(value, field=f"{prefix}.{key}")
        elif key.endswith("_s") and isinstance(value, str):
            found[key] = parse_duration_s(value, field=f"{prefix}.{key}")
    VMConfig(**found)
    return found
