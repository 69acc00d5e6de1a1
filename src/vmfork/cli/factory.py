"""`vmfork factory`: the template that the configured factory forks from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from vmfork.cli.loop import run_async
from vmfork.cli.options import config_option, get_settings, json_option, prepare_image
from vmfork.cli.show import show_json, shown_progress
from vmfork.config import find_places
from vmfork.errors import ConfigError, TemplateExists, TemplateNotFound, VMForkError
from vmfork.factory import Factory
from vmfork.store import TemplateStore
from vmfork.template.template import Template

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import FactoryConfig
    from vmfork.config.loader import Settings
    from vmfork.progress import ProgressListener

_OFF = 3


@click.group("factory")
def command() -> None:
    """Set up, inspect and remove the factory's template."""


@command.command("init")
@config_option
@json_option
def init(config_file: Path | None, as_json: bool) -> None:
    """Build the factory's template."""
    settings = get_settings(config_file=config_file)
    config = settings.factory
    if not config.template:
        raise ConfigError(
            "factory.template",
            config.template,
            "the factory has no template to build",
            hint="set template = true in [factory] of vmfork.toml, or VMFORK_FACTORY_TEMPLATE=true",
        )
    with shown_progress() as progress:
        run_async(_open(settings, progress))
    if as_json:
        show_json({"initialized": True, "template": config.template_name})
    else:
        click.echo(f"factory is on: template {config.template_name} is ready")


@command.command("status")
@config_option
@json_option
def status(config_file: Path | None, as_json: bool) -> int:
    """Tell whether the factory can fork: exit status 0 when on, 3 when off."""
    found = run_async(_find_status(get_settings(config_file=config_file).factory))
    if as_json:
        show_json(found)
    elif found["on"]:
        click.echo(f"on: template {found['template']}, {found['cpus']} CPU, {found['memory_mib']} MiB")
        if found["differs"]:
            click.echo(f"it differs from the configuration in {', '.join(found['differs'])}: such requests are booted")
    else:
        click.echo(f"off: {found['reason']}")
    return 0 if found["on"] else _OFF


@command.command("destroy")
@config_option
@json_option
def destroy(config_file: Path | None, as_json: bool) -> None:
    """Remove the factory's template. Doing it again does nothing."""
    name = get_settings(config_file=config_file).factory.template_name
    try:
        run_async(TemplateStore(find_places().templates).remove(name))
        destroyed = True
    except TemplateNotFound:
        destroyed = False
    if as_json:
        show_json({"destroyed": destroyed, "template": name})
    else:
        click.echo(f"removed template {name}" if destroyed else f"nothing to do: there is no template {name}")


async def _open(settings: Settings, progress: ProgressListener) -> None:
    await prepare_image(settings, progress)
    try:
        # Machines kept ready would go with this command.
        async with Factory(replace(settings.factory, cache=0), progress=progress):
            pass
    except TemplateExists as error:
        error.hint = "it is in use as it is (vmfork factory status); to build anew: vmfork factory destroy"
        raise


async def _find_status(config: FactoryConfig) -> dict[str, Any]:
    off: dict[str, Any] = {"on": False, "template": config.template_name}
    if not config.template:
        return off | {"code": "not-configured", "reason": "factory.template is false: machines are booted"}
    try:
        template = await Template.open(config.template_name, config=config.vm)
    except VMForkError as error:
        return off | {"code": error.code, "reason": error.message}
    m = template.manifest
    return {
        "on": True,
        "template": m.name,
        "generation": m.generation,
        "created_at": m.created_at,
        "image": m.image,
        "cpus": m.cpus,
        "memory_mib": m.memory_mib,
        "memory_allocated_bytes": m.memory_allocated_bytes,
        "fingerprint": m.fingerprint,
        "differs": [key for key in ("image", "cpus", "memory_mib") if getattr(m, key) != getattr(config.vm, key)],
    }
