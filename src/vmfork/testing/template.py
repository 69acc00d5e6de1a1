"""A template for a whole run of tests, whoever builds it."""

from __future__ import annotations

import asyncio
import fcntl
from typing import TYPE_CHECKING

from vmfork import Template
from vmfork.api.template import DEFAULT
from vmfork.config import Instance, check_name, find_places
from vmfork.host.folders import make_private
from vmfork.template.build import Recipe, ensure_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import VMConfig

_LIMIT_S = 1_800.0


def build_once(
    name: str = DEFAULT, config: VMConfig | None = None, *, warm_up: Sequence[str] = (), ready: str = ""
) -> Template:
    """The template `name`, of which `config`, `warm_up` and `ready` are true. It was built first if it was not so.

    Of several processes that ask at once, one builds, and the others take its result. It stays for the next run.
    """
    instance = Instance(find_places())
    # Without either, one that is there stays as it was made.
    recipe = Recipe(warm_up=tuple(warm_up), ready=ready) if warm_up or ready else None
    folder = instance.places.home / "testing"
    make_private(folder)
    # Two that find a template of another recipe would both build it anew, and the first's would be gone.
    with open(folder / f"{check_name(name)}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asyncio.run(ensure_template(name, config, instance=instance, wait_s=_LIMIT_S, recipe=recipe))
    return Template.open(name)
