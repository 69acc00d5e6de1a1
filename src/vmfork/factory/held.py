"""Machines that a pool holds, and what it tells of itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from vmfork.rpc.status import MachineStatus, PoolStatus

if TYPE_CHECKING:
    from vmfork.machine.base import BaseVM


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus(PoolStatus):
    """The figures of a pool, and the machines that are ready in it.

    `dropped` has four reasons: `expired`, `unhealthy`, `replaced`, `surplus`.
    """

    closed: bool = False
    vms: tuple[MachineStatus, ...] = ()

    @property
    def figures(self) -> PoolStatus:
        """The figures alone, as a server tells them beside its machines."""
        return PoolStatus(**{each.name: getattr(self, each.name) for each in fields(PoolStatus)})


@dataclass(slots=True, eq=False)
class Held:
    """A machine of the pool. `generation` is that of its kind; `since` when it was ready (monotonic)."""

    base_vm: BaseVM
    generation: str
    parked: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since

    async def find_trouble(self, limit_s: float) -> str | None:
        """What keeps the machine from answering within `limit_s` seconds, or `None` when it did."""
        try:
            # `check` has a limit of its own, after which it still waits to see whether the process has ended.
            async with asyncio.timeout(2 * limit_s):
                await self.base_vm.check(timeout_s=limit_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, this machine is not given to anybody
            return str(error) or type(error).__name__
        return None

    def describe(self) -> MachineStatus:
        vm = self.base_vm
        return MachineStatus(
            id=vm.identity.vm_id,
            pid=vm.pid,
            cpus=vm.hardware.cpus,
            memory_mib=vm.hardware.memory_mib,
            age_s=round(self.age_s, 3),
        )
