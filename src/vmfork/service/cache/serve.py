"""A cache server as a service: its metrics are served beside it, and its supervisor is told its phase."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from vmfork.rpc.status import Phase
from vmfork.service.base.exposition import Exposition
from vmfork.service.base.notify import notify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.config.endpoint import MetricsAddress
    from vmfork.service.cache.pools import Pools
    from vmfork.service.cache.server import CacheServer


async def serve(
    server: CacheServer,
    open_pools: Callable[[], Awaitable[Pools]],
    *,
    metrics: MetricsAddress | None = None,
    on_change: Callable[[Phase], None] = lambda _phase: None,
) -> None:
    """The server served until told to quit. systemd got READY=1 with the first machine, STOPPING=1 with the drain."""

    def enter(phase: Phase) -> None:
        match phase:
            case Phase.SERVING:
                notify("READY=1", f"STATUS=serving at {server.endpoint}")
            case Phase.DEGRADED:
                notify(f"STATUS=degraded: {server.state.last_error}")
            case Phase.DRAINING:
                notify("STOPPING=1", "STATUS=draining")
            case _:
                notify(f"STATUS={phase.value}")
        on_change(phase)

    async with AsyncExitStack() as stack:

        async def open_all() -> Pools:
            # Not before the endpoint is ours: a second server must be refused for its endpoint, not for its metrics.
            if metrics is not None:
                exposition = Exposition(metrics, server.state.render_metrics)
                stack.push_async_callback(exposition.aclose)
                await exposition.open()
                server.state.metrics_address = exposition.address
            return await open_pools()

        await server.run(open_all, on_change=enter)
