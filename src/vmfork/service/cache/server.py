"""The VM cache server: its life from claim to drain."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vmfork.errors import DeadlineExceeded
from vmfork.machine.folder import sweep_vms
from vmfork.rpc import cache_pb2 as pb
from vmfork.rpc.cache_pb2_grpc import add_CacheServicer_to_server
from vmfork.rpc.runtime import hold_runtime
from vmfork.rpc.status import Phase
from vmfork.service.base.claim import Claim
from vmfork.service.base.front import Front, Inner
from vmfork.service.cache.calls import Calls
from vmfork.service.cache.state import ServerState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vmfork.config import VMConfig
    from vmfork.service.cache.pools import Pools

T = TypeVar("T")

_log = logging.getLogger("vmfork")

SERVICE = pb.DESCRIPTOR.services_by_name["Cache"].full_name

# After this long, a pool that holds a machine, or gave one, counts as ready even if it is not full.
_FILL_PATIENCE_S = 1.0
# A taker ends its machines itself. One that was killed leaves a folder with a log for each.
SWEEP_INTERVAL_S = 10.0
# Answers are sent within this. Then clients are cut off: one that only watches health would hold the server up.
_LAST_WORDS_S = 0.5


class CacheServer:
    """Owner of the endpoint while `run` runs. Machines given out are their takers' and outlive it."""

    def __init__(
        self, endpoint: Path, config: VMConfig, *, version: str, template: str = "", vms: Path | None = None
    ) -> None:
        self.endpoint = endpoint
        self.state = ServerState(endpoint, config, version=version, template=template)
        self._vms = vms
        self._quitting = asyncio.Event()
        self._health = health.aio.HealthServicer()

    def quit(self) -> None:
        """The server drains and ends. Whatever it answered still arrives. Asking again changes nothing."""
        self._quitting.set()

    async def run(
        self,
        open_pools: Callable[[], Awaitable[Pools]],
        *,
        on_change: Callable[[Phase], None] = lambda _phase: None,
    ) -> None:
        """The server served until it was told to quit, and drained. Nothing is left at the endpoint, nor of the pool.

        `open_pools` makes the pools while the endpoint answers already; `on_change` is called with each phase.
        Raises `StoreBusy` when another server has the endpoint, and what `open_pools` raises. On cancel it ends without
        waiting for anybody.
        """
        async with AsyncExitStack() as stack:
            claim = Claim.take(
                self.endpoint,
                other="another VM cache server",
                hint="use that one, end it (vmfork factory destroy), or name another: [factory] endpoint",
            )
            stack.callback(claim.close)
            inner = Inner(self.endpoint)
            stack.callback(inner.close)
            server = await self._start_grpc(inner)
            stack.push_async_callback(server.stop, None)
            front = Front(self.endpoint, inner)
            stack.push_async_callback(front.aclose)
            self.state.count_refused = lambda: front.refused
            await front.open()
            await self._serve(open_pools, on_change, stack)
            await self._enter(Phase.DRAINING, on_change)
            if self.state.pools is not None:
                await self.state.pools.aclose()
            await self.state.given.finish()
            await server.stop(_LAST_WORDS_S)

    async def _serve(
        self,
        open_pools: Callable[[], Awaitable[Pools]],
        on_change: Callable[[Phase], None],
        stack: AsyncExitStack,
    ) -> None:
        await self._enter(Phase.STARTING, on_change)
        pools = await self._unless_quit(open_pools())
        self.state.open(pools)
        if pools is not None:
            stack.push_async_callback(pools.aclose)
            await self._unless_quit(_wait_ready(pools))
        if pools is not None and not self._quitting.is_set():
            await self._unless_quit(self._attend(pools, on_change))

    async def _attend(self, pools: Pools, on_change: Callable[[Phase], None]) -> None:
        await asyncio.gather(self._follow(pools, on_change), self._sweep())

    async def _follow(self, pools: Pools, on_change: Callable[[Phase], None]) -> None:
        """The server is degraded while its pools are stuck, and serves otherwise. Never ends."""
        while True:
            await self._enter(Phase.SERVING, on_change)
            await pools.wait_stuck()
            await self._enter(Phase.DEGRADED, on_change)
            await pools.wait_unstuck()

    async def _sweep(self) -> None:
        """Removes what machines left behind whose takers were killed, from time to time. Never ends."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            try:
                before = self.state.given.count()
                if self._vms is not None and len(self.state.given.find_live()) < before:
                    await asyncio.to_thread(sweep_vms, self._vms)
            except Exception as error:  # noqa: BLE001 - no descriptors, a damaged folder: the next sweep does it
                _log.warning("what ended machines left was not removed: %s", error)

    async def _unless_quit(self, work: Awaitable[T]) -> T | None:
        """The result of `work`, or `None` when it was cancelled because the server is to end."""
        task = asyncio.ensure_future(work)
        quitting = asyncio.ensure_future(self._quitting.wait())
        try:
            await asyncio.wait({task, quitting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            quitting.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    async def _start_grpc(self, inner: Inner) -> grpc.aio.Server:
        hold_runtime()
        # Without SO_REUSEPORT: two servers on one address would share its clients.
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_CacheServicer_to_server(Calls(self.state, self.quit), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self._set_health(serving=False)
        server.add_insecure_port(f"unix:{inner.path}")
        await server.start()
        return server

    async def _enter(self, phase: Phase, on_change: Callable[[Phase], None]) -> None:
        self.state.enter(phase)
        await self._set_health(serving=phase is Phase.SERVING)
        on_change(phase)

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)


async def _wait_ready(pools: Pools) -> None:
    """The pools are full for the first time, or after a while they are not, but hold a machine or gave one."""
    while True:
        try:
            await pools.wait_full(timeout_s=_FILL_PATIENCE_S)
        except DeadlineExceeded:
            status = pools.status()
            if not status.ready + status.given:
                continue
        return
