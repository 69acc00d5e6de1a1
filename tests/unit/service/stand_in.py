"""A pool without machines: what the server does with one can be seen without QEMU."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field

from vmfork.errors import Closed, DeadlineExceeded, HostError, VMForkError
from vmfork.factory.held import CacheStatus
from vmfork.factory.kind import Kind
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.rpc.status import MachineStatus

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256, max_cpus=2)


@dataclass(frozen=True)
class StandInHandle:
    id: str
    pid: int
    start_ticks: int
    version: int = 1

    @property
    def process(self) -> ProcessIdentity:
        return ProcessIdentity(self.pid, self.start_ticks)

    def to_json(self) -> bytes:
        return json.dumps({"id": self.id, "version": self.version}).encode()


class StandInBase:
    """Stands for a machine: this very process, so that it is alive. The pool sees who has it."""

    spawn_s, answer_s = 0.02, 0.03
    hardware = HARDWARE

    def __init__(self, pool: StandInPool, vm_id: str) -> None:
        self.pool, self.vm_id = pool, vm_id

    async def detach(self, *, ttl_s: float) -> StandInHandle:
        self.pool.ttls.append(ttl_s)
        await self.pool.detaching.wait()
        if self.pool.detach_fails:
            raise VMForkError("it does not let go", hint="try again")
        self.pool.where[self.vm_id] = "parked"
        me = ProcessIdentity.of(os.getpid())
        return StandInHandle(self.vm_id, me.pid, me.start_ticks)

    @classmethod
    async def attach(cls, handle: StandInHandle) -> StandInBase:
        return cls(StandInPool.last, handle.id)

    async def aclose(self) -> None:
        self.pool.where[self.vm_id] = "ended"


@dataclass
class StandInPool:
    size: int = 2
    name: str = "cache of nothing"
    hardware: Hardware = HARDWARE
    traits: dict[str, str] = field(default_factory=lambda: {"accel": "tcg"})
    template: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        type(self).last = self
        self.where: dict[str, str] = {}
        self.ttls: list[float] = []
        self.ready: list[str] = []
        self.detach_fails = False
        self.detaching = asyncio.Event()
        self.detaching.set()
        self.filled = asyncio.Event()
        self.stuck, self.unstuck = asyncio.Event(), asyncio.Event()
        self.changed = asyncio.Condition()
        self.given, self.waiting, self.closed = 0, 0, False
        self.made = 0

    async def fill(self, count: int = 1) -> None:
        async with self.changed:
            for _ in range(count):
                self.made += 1
                self.ready.append(f"vm{self.made}")
                self.where[self.ready[-1]] = "held"
            self.filled.set()
            self.changed.notify_all()

    @property
    def kind(self) -> Kind:
        return Kind(
            name=self.name,
            image="default",
            traits=self.traits,
            hardware=self.hardware,
            generation="one",
            shares_memory=True,
            where="template",
            template=self.template,
            recipe=self.recipe,
            is_warmed=bool(self.recipe),
        )

    @property
    def is_stuck(self) -> bool:
        return self.stuck.is_set()

    def status(self) -> CacheStatus:
        return CacheStatus(
            size=self.size,
            ready=len(self.ready),
            refilling=self.size - len(self.ready),
            waiting=self.waiting,
            given=self.given,
            hits=self.given,
            misses=0,
            failed=3,
            last_error="no room",
            dropped={"dead": 1},
            vms=tuple(
                MachineStatus(id=vm_id, pid=os.getpid(), cpus=1, memory_mib=256, age_s=1.0) for vm_id in self.ready
            ),
        )

    async def refresh(self) -> None:
        if self.stuck.is_set():
            raise HostError("cache of nothing holds no machine, and its last start failed: no room")

    async def wait_stuck(self) -> None:
        await self.stuck.wait()

    async def wait_unstuck(self) -> None:
        await self.unstuck.wait()

    async def wait_full(self, *, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.filled.wait()
        except TimeoutError:
            raise DeadlineExceeded("filling", timeout_s) from None

    async def get_base_vm(self, timeout_s: float | None = None) -> StandInBase:
        try:
            async with asyncio.timeout(timeout_s), self.changed:
                await self.changed.wait_for(lambda: self.ready or self.closed)
                if self.closed:
                    raise Closed("the pool")
                self.given += 1
                return StandInBase(self, self.ready.pop(0))
        except TimeoutError:
            raise DeadlineExceeded("waiting for a machine", timeout_s) from None

    async def aclose(self) -> None:
        async with self.changed:
            self.closed = True
            for vm_id in self.ready:
                self.where[vm_id] = "ended"
            self.ready.clear()
            self.changed.notify_all()
