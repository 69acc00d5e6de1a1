"""Machines that a pool holds, and what it tells of itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.machine.base import BaseVM


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedVM:
    """One machine that is ready. `age_s`: seconds since it was."""

    id: str
    pid: int
    cpus: int
    memory_mib: int
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus:
    """What a cache holds now, and what it did since it was opened.

    `given`: machines handed out; `hits` of them at once, `misses` after waiting. `failed`: starts that failed, with
    `last_error` the last. `dropped`: machines that were not handed out, by reason (`expired`, `unhealthy`, `replaced`).
    `waiting`: callers that wait now.
    """

    size: int = 0
    refilling: int = 0
    waiting: int = 0
    given: int = 0
    hits: int = 0
    misses: int = 0
    failed: int = 0
    last_error: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    closed: bool = False
    vms: tuple[CachedVM, ...] = ()

    @property
    def ready(self) -> int:
        return len(self.vms)


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

    def describe(self) -> CachedVM:
        vm = self.base_vm
        return CachedVM(
            id=vm.identity.vm_id,
            pid=vm.pid,
            cpus=vm.hardware.cpus,
            memory_mib=vm.hardware.memory_mib,
            age_s=round(self.age_s, 3),
        )
