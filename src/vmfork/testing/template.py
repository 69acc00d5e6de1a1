"""A template for a whole run of tests, whoever builds it."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Any

from vmfork import Recipe, Template
from vmfork.api.template import DEFAULT
from vmfork.config import check_name, find_places
from vmfork.errors import ConfigError
from vmfork.host.folders import make_private

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.config import VMConfig
    from vmfork.wire.given import HostPath

_LIMIT_S = 1_800.0


def build_once(
    name: str = DEFAULT,
    config: VMConfig | None = None,
    *,
    recipe: Recipe | HostPath | None = None,
    warm_up: Sequence[str] = (),
    ready: str | Mapping[str, Any] = "",
) -> Template:
    """The template `name`, of which `config`, and `recipe` or `warm_up` and `ready`, are true.

    It was built first if it was not so. `recipe` is a `Recipe`, or a file that has the section [template.NAME]. Of
    several processes that ask at once, one builds, and the others take its result. It stays for the next run. Raises
    `ConfigError` for a recipe beside `warm_up` or `ready`, and what `Template.ensure` raises.
    """
    if warm_up or ready:
        if recipe is not None:
            hint = "put the steps into the recipe, or leave it away"
            raise ConfigError("recipe", recipe, "it says all of how the template is made", hint=hint)
        recipe = Recipe(warm_up=warm_up, ready=ready)
    folder = find_places().home / "testing"
    make_private(folder)
    # Two that find a template of another recipe would both build it anew, and the first's would be gone.
    with open(folder / f"{check_name(name)}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Without a recipe, one that is there stays as it was made.
        Template.ensure(name, config, recipe=recipe, wait_s=_LIMIT_S)
    return Template.open(name)
