"""`vmfork factory`: the template that the configured factory forks from, and the server of its cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmfork.cli.loop import run_async
from vmfork.cli.options import VerbGroup, config_option, get_settings, json_option, prepare_image
from vmfork.cli.serve import ask_status, serve_cache, stop_server
from vmfork.cli.show import printable, show_json, show_table, shown_progress
from vmfork.config import Instance, find_places
from vmfork.config.endpoint import find_endpoint
from vmfork.errors import ConfigError, TemplateNotFound
from vmfork.factory.setup import check_templates, make_templates
from vmfork.factory.status import TemplateStatus, find_statuses
from vmfork.template.removal import remove_template
from vmfork.units import format_bytes, format_duration

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import FactoryConfig
    from vmfork.config.loader import Settings
    from vmfork.progress import ProgressListener
    from vmfork.rpc.status import PoolStatus, ServerStatus

_OFF = 3
# What a request becomes, in the words of people.
_BECOMES = {
    "exact": "forked as they are",
    "grown": "forked and grown",
    "larger": "given the larger machine",
    "refused": "refused",
    "built": "served once it is built",
    "booted": "booted",
}


@click.group("factory", cls=VerbGroup)
def command() -> None:
    """Set up, inspect and remove the factory's template; serve its cache."""


@command.command("init")
@config_option
@click.option(
    "--new/--ensure",
    default=None,
    help="Fail where the template is there already, or use it where it fits. Default: --new; --ensure with "
    'build = "background" or a cache.',
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="How a server tells what it does: for people, or one JSON object a line.",
)
@json_option
def init(config_file: Path | None, new: bool | None, log_format: str, as_json: bool) -> None:
    """Build the factory's templates; with a cache, keep machines ready and serve them until ended."""
    settings = get_settings(config_file=config_file)
    config = settings.factory
    if config.cache > 0:
        if new:
            reason = "a server that starts again uses the template that is there"
            raise ConfigError("new", new, reason, hint="leave --new out, or set cache = 0")
        serve_cache(settings, as_json=as_json, log_format=log_format)
        return
    if not config.template_names:
        hint = "set template = true in [factory] of vmfork.toml, or VMFORK_FACTORY_TEMPLATE=true"
        if config.remote:
            hint = "with remote = true machines come from a server: run this where it serves, without remote"
        raise ConfigError("factory.template", config.template, "the factory has no template to build", hint=hint)
    with shown_progress() as progress:
        is_new = config.template and (config.build == "now" if new is None else new)
        run_async(_build(settings, progress, new=is_new))
    names = config.template_names
    if as_json:
        show_json({"initialized": True, "template": names[0]} | ({"templates": names} if len(names) > 1 else {}))
    else:
        are_ready = f"template {names[0]} is ready" if len(names) == 1 else f"templates {', '.join(names)} are ready"
        click.echo(f"factory is on: {are_ready}")


@command.command("status")
@config_option
@json_option
def status(config_file: Path | None, as_json: bool) -> int:
    """Tell whether the factory can give machines: exit status 0 when on, 3 when off."""
    config = get_settings(config_file=config_file).factory
    if (served := run_async(ask_status(config, find_places()))) is not None:
        if as_json:
            show_json(asdict(served))
        else:
            _show_server(served)
        return 0 if served.on else _OFF
    found = _find_statuses(config)
    if as_json:
        show_json(asdict(found[0]) | {"templates": [asdict(status) for status in found[1:]]})
    else:
        for status in found:
            _show_template(status)
        if config.cache:
            click.echo("pool: none that others can use, no server runs (vmfork factory init)")
    return 0 if all(status.on for status in found) else _OFF


@command.command("destroy")
@config_option
@json_option
def destroy(config_file: Path | None, as_json: bool) -> None:
    """End the server of the cache, then remove the factory's template. Doing it again does nothing."""
    config = get_settings(config_file=config_file).factory
    name = config.template_name
    places = find_places()
    stopped = run_async(stop_server(config, places))
    try:
        run_async(remove_template(name, places=places))
        destroyed = True
    except TemplateNotFound:
        destroyed = False
    if as_json:
        show_json({"destroyed": destroyed, "template": name, "stopped_server": stopped})
        return
    if stopped is not None:
        click.echo(f"ended the VM cache server, process {stopped}")
    click.echo(f"removed template {name}" if destroyed else f"nothing to do: there is no template {name}")


def _find_statuses(config: FactoryConfig) -> tuple[TemplateStatus, ...]:
    """The status of each template. Without one to look at, the only status says what keeps the factory off."""
    places = find_places()
    asks_server = config.remote and config.cache == 0
    if asks_server or (config.cache and not config.template_names):
        endpoint = find_endpoint(config.endpoint, places)
        return (_off("no-server", f"no VM cache server is at {endpoint}"),)
    found = run_async(find_statuses(config, instance=Instance(places)))
    return found or (_off("not-configured", "factory.template is false: machines are booted"),)


def _off(code: str, reason: str) -> TemplateStatus:
    return TemplateStatus(on=False, template="", code=code, reason=reason)


def _show_template(status: TemplateStatus) -> None:
    if not status.on:
        click.echo(f"off: {printable(status.reason)}")
        if status.requests:
            click.echo(f"requests are {_BECOMES[status.requests]}")
        return
    click.echo(f"on: template {status.template}, {status.cpus} CPU, {status.memory_mib} MiB")
    if status.differs:
        differing = ", ".join(status.differs)
        click.echo(f"it differs from the configuration in {differing}: such requests are {_BECOMES[status.requests]}")
    if status.forks:
        saved = format_bytes(status.memory_saved_bytes)
        click.echo(f"forks alive: {status.forks}, which save {saved} by sharing its memory")


def _show_server(status: ServerStatus) -> None:
    pool = status.pool
    click.echo(f"{'on' if status.on else 'off'}: VM cache server, process {status.pid}, {status.state}")
    click.echo(f"endpoint: {status.endpoint}")
    if status.metrics_address:
        click.echo(f"metrics: {status.metrics_address}")
    each = f", {status.cpus} CPU, {status.memory_mib} MiB each" if len(status.pools) < 2 else ""
    click.echo(f"pool: {_fullness(pool)}{each}")
    if len(status.pools) > 1:
        for one in status.pools:
            told = " (stuck)" if one.is_stuck else ""
            click.echo(f"  {one.template}: {_fullness(one.pool)}, {one.cpus} CPU, {one.memory_mib} MiB each{told}")
    click.echo(f"given: {pool.given} ({pool.hits} at once), {len(status.live)} of them run")
    own, shared = format_bytes(status.memory_private_bytes), format_bytes(status.memory_shared_bytes)
    click.echo(f"memory: {own} own, {shared} shared")
    if pool.last_error:
        click.echo(f"{pool.failed} starts failed, the last: {printable(pool.last_error)}")
    rows = [
        (vm.id, vm.pid, where, vm.cpus, vm.memory_mib, format_duration(vm.age_s))
        for where, vms in (("ready", status.vms), ("given", status.live))
        for vm in vms
    ]
    if rows:
        show_table(("VM", "PID", "STATE", "CPUS", "MIB", "FOR"), rows)


def _fullness(pool: PoolStatus) -> str:
    spread = f" (of {pool.least} to {pool.most})" if pool.least < pool.most else ""
    return f"{pool.ready} of {pool.size}{spread} ready"


async def _build(settings: Settings, progress: ProgressListener, *, new: bool) -> None:
    config, places = settings.factory, find_places()
    await check_templates(config, new=new, places=places)
    await prepare_image(settings, progress)
    await make_templates(config, new=new, places=places, progress=progress)
