"""The VM cache server from the command line: in the foreground, asked, ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from typing import TYPE_CHECKING

import click

import vmfork
from vmfork.cli.logs import json_lines
from vmfork.cli.loop import run_async
from vmfork.cli.options import prepare_image
from vmfork.cli.show import command_hint, describe_failure, json_document, show_json, shown_progress
from vmfork.config import Instance, find_places
from vmfork.config.endpoint import find_endpoint, find_metrics
from vmfork.errors import ConfigError, DeadlineExceeded, VMForkError
from vmfork.factory.capacity import check_pool
from vmfork.factory.setup import check_templates
from vmfork.host.wait import wait_readable
from vmfork.journal import about
from vmfork.rpc.endpoint import check_socket, find_server
from vmfork.rpc.packages import check_packages, open_client
from vmfork.rpc.status import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.config import FactoryConfig, Places
    from vmfork.config.loader import Settings
    from vmfork.progress import ProgressListener
    from vmfork.rpc.status import ServerStatus
    from vmfork.service.cache.pools import Pools

_log = logging.getLogger("vmfork")

# Bounds the wait for a server that drains: it ends its machines and sends its last answers.
_DRAIN_LIMIT_S = 30.0


def serve_cache(settings: Settings, *, as_json: bool, log_format: str) -> None:
    """Machines were served until a signal or `vmfork factory destroy`; the server drained.

    With `as_json` one line on standard output tells when it serves for the first time, and where. With the log format
    `json`, standard error has lines of JSON alone; the error that ended it is the last of them.
    """
    if log_format == "text":
        with shown_progress() as progress:
            _serve_cache(settings, progress, lambda text: click.echo(f"factory: {text}", err=True), as_json=as_json)
        return
    with json_lines() as progress:
        try:
            _serve_cache(settings, progress, _log_phase, as_json=as_json)
        except VMForkError as error:
            _log.error("%s", error, extra=about("server.failed", error=error.code))
            if json_document.is_owed:
                show_json({"error": describe_failure(error.code, str(error), command_hint(error))})
            raise click.exceptions.Exit(2 if isinstance(error, ConfigError) else 1) from error


def _log_phase(text: str) -> None:
    _log.info("%s", text, extra=about("server.phase"))


def _serve_cache(settings: Settings, progress: ProgressListener, tell: Callable[[str], None], *, as_json: bool) -> None:
    config, places = settings.factory, find_places()
    if config.remote:
        raise ConfigError(
            "factory.remote",
            config.remote,
            "a server gives what it holds itself, it does not ask another",
            hint="leave remote out for factory init",
        )
    endpoint = find_endpoint(config.endpoint, places)
    metrics = find_metrics(config.metrics, endpoint)
    check_packages()
    from vmfork.service.cache import CacheServer, open_pools, serve  # noqa: PLC0415 - gRPC takes 60 ms to load

    server = CacheServer(
        endpoint,
        config.vm,
        version=vmfork.__version__,
        template=next(iter(config.template_names), ""),
        vms=places.vms,
    )

    several = len(config.template_names) > 1
    of_each = f" of each of {', '.join(config.template_names)}" if several else ""
    has_served = False

    def show(phase: Phase) -> None:
        nonlocal has_served
        if phase is Phase.SERVING and as_json and not has_served:
            has_served = True
            ready = {"state": phase.value, "pid": os.getpid(), "endpoint": str(endpoint)}
            click.echo(json.dumps({**ready, "metrics": server.state.metrics_address}))
        more = {
            Phase.STARTING: f", keeping {_spell_size(config)} machines ready{of_each}",
            Phase.SERVING: f" at {endpoint}",
            Phase.DEGRADED: f": {server.state.last_error}",
        }
        tell(f"{phase.value}{more.get(phase, '')}")

    async def make_pools() -> Pools:
        await check_pool(config, instance=Instance(places, progress))
        await check_templates(config, places=places)
        await prepare_image(settings, progress)
        return await open_pools(config, Instance(places, progress))

    run_async(serve(server, make_pools, metrics=metrics, on_change=show), on_first=server.quit)


def _spell_size(config: FactoryConfig) -> str:
    return str(config.cache) if config.cache_min is None else f"{config.cache_min} to {config.cache}"


async def ask_status(config: FactoryConfig, places: Places) -> ServerStatus | None:
    """The status of the server that runs, or `None`. Raises `HostError` when it cannot be asked."""
    endpoint = find_endpoint(config.endpoint, places)
    if find_server(endpoint) is None:
        return None
    async with open_client(endpoint) as client:
        return await client.status()


async def stop_server(config: FactoryConfig, places: Places) -> int | None:
    """The server drained, and its process has ended. Gives its pid, or `None` when no server ran.

    Raises `DeadlineExceeded`.
    """
    endpoint = find_endpoint(config.endpoint, places)
    pid = find_server(endpoint)
    if pid is None:
        return None
    check_socket(endpoint)
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    try:
        async with open_client(endpoint) as client:
            await client.quit()
        async with asyncio.timeout(_DRAIN_LIMIT_S):
            await wait_readable(fd)
    except TimeoutError:
        hint = f"it is process {pid}; a second SIGTERM ends it at once"
        raise DeadlineExceeded("draining the VM cache server", _DRAIN_LIMIT_S, hint=hint) from None
    finally:
        os.close(fd)
    return pid
