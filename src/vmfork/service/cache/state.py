"""What a cache server holds at a moment, and what it tells of itself."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.errors import Closed, DeadlineExceeded
from vmfork.rpc.status import MachineStatus, NamedPool, Phase, PoolStatus, ServerStatus
from vmfork.service.base.metrics import read_memory_of
from vmfork.service.cache.given import Given
from vmfork.service.cache.metrics import Metrics, Snapshot
from vmfork.store.manifest import fingerprint_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmfork.config import VMConfig
    from vmfork.factory.cache import CacheFactory
    from vmfork.service.cache.pools import Pools


class ServerState:
    """The pools, once there are any, and the machines given out; both belong to the server that runs."""

    def __init__(self, endpoint: Path, config: VMConfig, *, version: str, template: str) -> None:
        self.config = config
        self.version = version
        self.phase = Phase.STARTING
        self.metrics = Metrics()
        self.metrics_address = ""
        self.given = Given(self.metrics)
        self.pools: Pools | None = None
        self.count_refused: Callable[[], int] = lambda: 0
        self._endpoint = endpoint
        self._template = template
        self._started_at = datetime.now(UTC)
        self._opened = asyncio.Event()

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        if phase is Phase.DRAINING:
            self._opened.set()  # calls that wait for a pool are refused

    @property
    def last_error(self) -> str:
        """Why a machine could not be started, the last time that one could not; empty when all could."""
        return self.pools.status().last_error if self.pools else ""

    def open(self, pools: Pools | None) -> None:
        """`pools` serve the calls from now on; `None` where the start was broken off."""
        self.pools = pools
        self._opened.set()

    async def get_pools(self, limit_s: float | None) -> Pools:
        """The pools. Waits for them while the server starts. Raises `DeadlineExceeded`, and `Closed` when it ends."""
        try:
            async with asyncio.timeout(limit_s):
                await self._opened.wait()
        except TimeoutError:
            raise DeadlineExceeded("the start of the VM cache server", limit_s or 0.0) from None
        if self.pools is None or self.phase is Phase.DRAINING:
            raise Closed("the VM cache server", "it is ending")
        return self.pools

    async def describe(self) -> ServerStatus:
        """All there is to tell, of this moment."""
        held, live = await self._look()
        kinds = self.pools.kinds if self.pools else ()
        kind = kinds[0] if kinds else None
        now = self.metrics.snapshot
        return ServerStatus(
            on=self.phase is Phase.SERVING,
            pid=os.getpid(),
            version=self.version,
            state=self.phase.value,
            started_at=self._started_at.isoformat(timespec="milliseconds"),
            endpoint=str(self._endpoint),
            metrics_address=self.metrics_address,
            template=self._template,
            cpus=kind.hardware.cpus if kind else self.config.cpus,
            memory_mib=kind.hardware.memory_mib if kind else int(self.config.memory_mib),
            traits=dict(kind.traits) if kind else {},
            fingerprint=fingerprint_of(kind.traits) if kind else "",
            kind=kind.digest if kind else "",
            memory_private_bytes=now.private,
            memory_shared_bytes=now.shared,
            pool=now.pool,
            pools=tuple(_tell(each) for each in self.pools or ()),
            vms=held,
            live=live,
            metrics=self.metrics.registry.numbers(),
        )

    async def render_metrics(self) -> tuple[str, bytes]:
        """Content type and text for Prometheus, of this moment."""
        await self._look()
        return self.metrics.registry.render()

    async def _look(self) -> tuple[tuple[MachineStatus, ...], tuple[MachineStatus, ...]]:
        """The machines held, and those given that still run. `metrics.snapshot` is of the same moment."""
        held = self.pools.status().vms if self.pools else ()
        pids = [*(vm.pid for vm in held), *(vm.process.pid for vm in self.given.find_live())]
        shared, private = await read_memory_of(pids)
        # Reading memory took a while, and machines came and went: all else is of the moment after it.
        live = tuple(vm.status for vm in self.given.find_live())
        pool = self.pools.status() if self.pools else None
        self.metrics.snapshot = Snapshot(
            pool=pool.figures if pool else PoolStatus(),
            live=len(live),
            refused=self.count_refused(),
            shared=shared,
            private=private,
        )
        return (pool.vms if pool else ()), live


def _tell(pool: CacheFactory) -> NamedPool:
    kind = pool.kind
    return NamedPool(
        name=kind.name,
        template=kind.template,
        cpus=kind.hardware.cpus,
        memory_mib=kind.hardware.memory_mib,
        kind=kind.digest,
        is_stuck=pool.is_stuck,
        pool=pool.status().figures,
    )
