"""A recipe as a file, in TOML: a section of `vmfork.toml`, or a file of its own that a factory names.

```
[template.web]              of vmfork.toml; a factory's own file has the same words without a section, and none for a
memory = "512M"             machine
steps = [{run = "make"}]    the words: template/recipe.py

[vm]                        what a machine is where neither the recipe nor whoever builds it says that
[image], [image.NAME]       what its image is made of
```
Files that the steps read lie in and below the folder of this file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmfork.config import VMConfig
from vmfork.config.loader import RECIPES, check_section, load_settings, name_unknown, read_images, read_toml
from vmfork.errors import ConfigError
from vmfork.template.recipe import FROM, WORDS, Recipe
from vmfork.template.recipe_machine import FIELDS, SIZES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmfork.config import ImageConfig


def read_recipe(path: Path) -> Recipe:
    """The recipe in the factory's file at `path`. Raises `ConfigError`, naming the file, and the key that is wrong."""
    given = read_toml(path, field="factory.recipe")
    for key in given:
        if key not in WORDS:
            raise name_unknown(f"factory.recipe.{key}", f"{path} has it", "words of a recipe", WORDS)
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
        if key not in (known := (*WORDS, FROM, *SIZES, *FIELDS)):
            raise name_unknown(f"{RECIPES}.{name}.{key}", f"{path} has it", "words of a recipe", known)
    images = read_images(body, path)
    return name, _read(given, path, prefix=f"{RECIPES}.{name}", images=images)


def read_build(path: Path, name: str, config: VMConfig | None) -> tuple[Recipe, VMConfig | None]:
    """The recipe of [template.NAME], and the configuration that it is built with.

    That is `config`; without it [vm] of the file, if it says something. The recipe knows what [image] or [image.NAME]
    there says of the image that is booted. The environment is not asked. Raises `ConfigError` as `read_template` does,
    and for what else of the file makes no sense.
    """
    _, recipe = read_template(path, name)
    if not path.is_file():  # what comes by a pipe comes once
        return recipe, config
    settings = load_settings(path, {})
    config = config or settings.vm_if_given
    if recipe.base is None:
        recipe = replace(recipe, base=settings.find_made_of(recipe.apply_to(config or VMConfig()).image))
    return recipe, config


def _read(
    given: Mapping[str, Any], path: Path, *, prefix: str, images: Mapping[str, ImageConfig] | None = None
) -> Recipe:
    try:
        recipe = Recipe(**given, folder=path.parent)
    except ConfigError as error:
        # A field of the machine is called so wherever it is said.
        field = error.field if error.field.startswith("vm.") else f"{prefix}.{error.field}"
        raise ConfigError(field, error.value, f"{error.reason} (from {path})", hint=error.hint) from None
    if recipe.base is not None:
        return recipe
    base = (images or {}).get(recipe.vm.get("image", ""))
    return replace(recipe, base=base, images=tuple(images or ()) if base is None else ())
