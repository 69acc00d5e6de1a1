"""The VM cache server from the command line: in the foreground, asked, ended."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import click

import vmfork
from vmfork.cli.loop import run_async
from vmfork.cli.options import prepare_image
from vmfork.cli.show import shown_progress
from vmfork.config import find_places
from vmfork.config.endpoint import find_endpoint, parse_metrics_address
from vmfork.errors import ConfigError, DeadlineExceeded, HostError
from vmfork.rpc.packages import check_packages

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import FactoryConfig, Places
    from vmfork.config.loader import Settings
    from vmfork.factory.cache import CacheFactory

# A server that drains ends its machines and sends its last answers.
_DRAIN_LIMIT_S = 30.0


def serve_cache(settings: Settings, *, as_json: bool) -> None:
    """Machines were served until a signal or `vmfork factory destroy`; the server drained.

    With `as_json` one line on standard output tells when it serves, and where.
    """
    config, places = settings.factory, find_places()
    if config.remote:
        raise ConfigError(
            "factory.remote",
            config.remote,
            "a server gives what it holds itself, it does not ask another",
            hint="leave remote away for factory init",
        )
    endpoint = find_endpoint(config.endpoint, places)
    metrics = parse_metrics_address(config.metrics) if config.metrics else None
    check_packages()
    from vmfork.service.pool import open_pool  # noqa: PLC0415 - gRPC takes 60 ms to load
    from vmfork.service.serve import serve  # noqa: PLC0415
    from vmfork.service.server import CacheServer  # noqa: PLC0415

    server = CacheServer(
        endpoint,
        config.vm,
        version=vmfork.__version__,
        template=config.template_name if config.template else "",
        vms=places.vms,
    )

    def tell(state: str) -> None:
        if state == "serving" and as_json:
            ready = {"state": state, "pid": os.getpid(), "endpoint": str(endpoint), "metrics": server.metrics_address}
            click.echo(json.dumps(ready))
        where = {"serving": f" at {endpoint}", "starting": f", keeping {config.cache} machines ready"}.get(state, "")
        click.echo(f"factory: {state}{where}", err=True)

    with shown_progress() as progress:

        async def make_pool() -> CacheFactory:
            await prepare_image(settings, progress)
            return await open_pool(config, places=places, progress=progress)

        run_async(serve(server, make_pool, metrics=metrics, on_change=tell), on_first=server.quit)


async def ask_status(config: FactoryConfig, places: Places) -> dict[str, Any] | None:
    """What a running server tells of itself; `None` where none listens."""
    endpoint = find_endpoint(config.endpoint, places)
    if find_server(endpoint) is None:
        return None
    check_packages()
    from vmfork.rpc.client import CacheClient  # noqa: PLC0415 - only where there is a server

    async with CacheClient(endpoint) as client:
        status: dict[str, Any] = json.loads((await client.status()).document)
        return status


async def stop_server(config: FactoryConfig, places: Places) -> int | None:
    """The server drained and its process has ended; its pid, or `None` where none ran. `DeadlineExceeded`."""
    endpoint = find_endpoint(config.endpoint, places)
    pid = find_server(endpoint)
    if pid is None:
        return None
    check_packages()
    from vmfork.rpc.client import CacheClient, check_socket  # noqa: PLC0415

    check_socket(endpoint)
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return pid
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, lambda: None if ended.done() else ended.set_result(None))
    try:
        async with CacheClient(endpoint) as client:
            await client.quit()
        async with asyncio.timeout(_DRAIN_LIMIT_S):
            await ended
    except TimeoutError:
        hint = f"it is process {pid}; a second SIGTERM ends it at once"
        raise DeadlineExceeded("draining the VM cache server", _DRAIN_LIMIT_S, hint=hint) from None
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return pid


def find_server(endpoint: Path) -> int | None:
    """The pid of the process that listens at `endpoint` (SO_PEERCRED), or `None`: no socket, or nobody behind it.

    `HostError` when there is one that cannot be reached.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(endpoint))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        except OSError as error:
            raise HostError(f"the VM cache server at {endpoint} cannot be reached: {error.strerror}") from error
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little", signed=True)
