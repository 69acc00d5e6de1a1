"""What `Template` and the command line do with templates that travel or are kept on disk."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vmfork.config import VMConfig
from vmfork.errors import ArtifactError, ConfigError, HostError, StoreBusy, TemplateError
from vmfork.journal import about
from vmfork.late import import_late
from vmfork.oci.reference import Reference
from vmfork.template.source import Source
from vmfork.template.travelling import arrival
from vmfork.template.travelling.persisted import bring_back, follow, open_template, persist
from vmfork.travel.sending import save_template

_log = logging.getLogger("vmfork")

# The extra `oci`: what is asked for, and what is installed for it.
_NEEDED = ("oras", "requests")

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Instance
    from vmfork.travel.saved import Saved

__all__ = [
    "load_template",
    "open_template",
    "persist",
    "pull_if_missing",
    "pull_template",
    "push_template",
    "save_template",
]


async def load_template(
    path: Path, name: str, *, config: VMConfig, instance: Instance, replace_it: bool, wait_s: float
) -> Source:
    """As `arrival.load_template`; the template is kept on disk where the one before was, or `config` says so."""
    source = await arrival.load_template(
        path, name, config=config, instance=instance, replace_it=replace_it, wait_s=wait_s
    )
    await follow(source, config=config, instance=instance)
    return source


async def push_template(source: Source, ref: str, *, plain_http: bool, instance: Instance) -> Saved:
    """As `exchange.push_template`. Raises `ConfigError` for what is no reference, `HostError` without the extra."""
    reference, m = Reference.parse(ref), source.manifest
    if reference.is_digest:
        raise ConfigError("ref", ref, "what is pushed has the digest that it has", hint="give a tag: HOST/NAME:TAG")
    push = _of_exchange("push_template")
    pushed: Saved = await push(m.name, reference, generation=m.generation, plain_http=plain_http, instance=instance)
    return pushed


async def pull_template(
    ref: str, name: str, *, plain_http: bool, config: VMConfig, instance: Instance, replace_it: bool, wait_s: float
) -> Source:
    """As `exchange.pull_template`; kept on disk as what `load_template` loads."""
    pull = _of_exchange("pull_template")
    source: Source = await pull(
        Reference.parse(ref),
        name,
        plain_http=plain_http,
        config=config,
        instance=instance,
        replace_it=replace_it,
        wait_s=wait_s,
    )
    await follow(source, config=config, instance=instance)
    return source


async def pull_if_missing(
    name: str, ref: str, *, config: VMConfig | None, recipe: str = "", instance: Instance, wait_s: float
) -> None:
    """The template in the registry is in force, if none is here that fits `config` and was made by `recipe`.

    Where it cannot be had, or does not fit this host, that is logged. Raises `ConfigError` for what is no reference.
    """
    wanted = config or VMConfig()
    await bring_back(name, wanted, instance=instance)
    found = await Source.find(name, config, instance=instance)
    if found is not None and recipe in ("", found.recipe):
        return
    try:
        await pull_template(
            ref, name, plain_http=False, config=wanted, instance=instance, replace_it=True, wait_s=wait_s
        )
    except (ArtifactError, HostError, StoreBusy, TemplateError) as error:
        _log.warning("template %r was not pulled: %s", name, error, extra=about("template.not-pulled", template=name))


def _of_exchange(name: str) -> Any:
    """What `template/travelling/exchange.py` calls so. Raises `HostError` where what that needs is not installed."""
    missing = [package for package in _NEEDED if find_spec(package) is None]
    if missing:
        raise HostError(
            f"registries need {', '.join(missing)}",
            hint="install vmfork with its extra: pip install 'vmfork[oci]'; or save the template, and use skopeo",
        )
    return import_late("vmfork.template.travelling.exchange", name)
