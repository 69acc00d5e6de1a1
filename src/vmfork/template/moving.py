"""What `Template` and the command line do with templates that travel or are kept on disk."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from vmfork.config import VMConfig
from vmfork.errors import ArtifactError, HostError, StoreBusy, TemplateError, TemplateExists
from vmfork.journal import about
from vmfork.oci.door import parse_target
from vmfork.oci.reference import Reference
from vmfork.store import TemplateStore
from vmfork.template.source import Source
from vmfork.template.travelling import arrival, exchange
from vmfork.template.travelling.arrival import Target
from vmfork.template.travelling.persisted import bring_back, follow, open_template, persist
from vmfork.travel.sending import save_template

_log = logging.getLogger("vmfork")

_LOOK_AGAIN_S = 0.5
_MOST_PAUSE_S = 30.0

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Instance
    from vmfork.travel.saved import Saved

__all__ = [
    "Target",
    "load_template",
    "open_template",
    "persist",
    "pull_if_missing",
    "pull_template",
    "push_template",
    "save_template",
]


async def load_template(path: Path, target: Target) -> Source:
    """As `arrival.load_template`; kept on disk where the template before was, or the target's `config` says so."""
    return await _followed(await arrival.load_template(path, target), target)


async def push_template(source: Source, ref: str, *, plain_http: bool, instance: Instance) -> Saved:
    """As `exchange.push_template`. Raises `ConfigError` for what is no reference, `HostError` without the extra."""
    m = source.manifest
    return await exchange.push_template(
        m.name, parse_target(ref), generation=m.generation, plain_http=plain_http, instance=instance
    )


async def pull_template(ref: str, target: Target, *, plain_http: bool = False) -> Source:
    """As `exchange.pull_template`; kept on disk as what `load_template` loads."""
    source = await exchange.pull_template(Reference.parse(ref), target, plain_http=plain_http)
    return await _followed(source, target)


async def _followed(source: Source, target: Target) -> Source:
    await follow(source, config=target.config, instance=target.instance)
    return source


async def pull_if_missing(
    name: str, ref: str, *, config: VMConfig | None, recipe: str = "", instance: Instance, wait_s: float
) -> None:
    """The template in the registry is in force, if none is here that fits `config` and was made by `recipe`.

    Where it cannot be had, or does not fit this host, that is logged. Raises `ConfigError` for what is no reference.
    """
    wanted, deadline, pause_s = config or VMConfig(), time.monotonic() + wait_s, _LOOK_AGAIN_S
    store = TemplateStore(instance.places.templates)

    async def is_there() -> bool:
        found = await Source.find(name, config, instance=instance)
        return found is not None and recipe in ("", found.recipe)

    await bring_back(name, wanted, instance=instance)
    try:
        while not await is_there():
            in_force = await asyncio.to_thread(store.find_generation, name)
            target = Target(instance=instance, config=wanted, name=name, replace_it=in_force is not None)
            try:
                await pull_template(ref, target)
            except (StoreBusy, TemplateExists):  # another makes it now, or has: what that gives will do
                if time.monotonic() >= deadline:
                    raise
                until = min(deadline, time.monotonic() + pause_s)
                while time.monotonic() < until and not await is_there():  # noqa: ASYNC110 - another process may make it
                    await asyncio.sleep(_LOOK_AGAIN_S)
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)  # the registry is asked each time
            else:
                return
    except (ArtifactError, HostError, StoreBusy, TemplateError) as error:
        _log.warning("template %r was not pulled: %s", name, error, extra=about("template.not-pulled", template=name))
