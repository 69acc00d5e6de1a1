"""Bases and machines without QEMU: what a pool and the outer factory do with them can be seen, and made to fail."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace
from typing import Self

from vmfork.errors import HostError
from vmfork.factory.kind import Kind
from vmfork.hypervisor.base import Hardware, Isolation
from vmfork.hypervisor.qemu import default_cpu_model
from vmfork.machine.base import Adopted
from vmfork.machine.request import ForkRequest
from vmfork.machine.timings import Timings

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model=default_cpu_model("tcg"), cpus=1, memory_mib=256)
TRAITS = {
    "machine": HARDWARE.machine,
    "accel": "tcg",
    "cpu_model": default_cpu_model("tcg"),
    "image.kernel": "aa",
    "image.initramfs": "bb",
    "kernel_args": "",
    "reseed": "both",
    "aslr": "off",
}


@dataclass(frozen=True)
class StandInIdentity:
    vm_id: str


TIMINGS = Timings(spawn_s=0.0, answer_s=0.002, clock_s=0.001, thaw_s=0.0, total_s=0.003)


class StandInVM:
    """What the outer factory makes of an adopted machine."""

    def __init__(
        self, base: StandInBaseVM, _adoption: None, timings: Timings, *, origin=None, on_first_exec=None
    ) -> None:
        self.source = origin
        self.base, self.hardware, self.timings, self.listener = base, base.hardware, timings, on_first_exec

    async def aclose(self) -> None:
        self.base.state = "ended"


class StandInBaseVM:
    """A machine; `state` is where it is: started, parked, adopted, ended. `check_hangs` is a stopped QEMU."""

    pid = 4711
    isolation = Isolation(level="namespaces")
    spawn_s, answer_s = 0.02, 0.03

    def __init__(self, number: int, generation: str, hardware: Hardware) -> None:
        self.identity = StandInIdentity(f"vm{number}")
        self.generation, self.hardware = generation, hardware
        self.state = "started"
        self.park_error: Exception | None = None
        self.check_error: Exception | None = None
        self.adopt_error: Exception | None = None
        self.check_hangs = False
        self.checked = 0
        self.request: ForkRequest | None = None

    async def park(self, *, timeout_s: float) -> None:
        await asyncio.sleep(0)
        if self.park_error is not None:
            raise self.park_error
        self.state = "parked"

    async def wait_up(self, *, timeout_s: float) -> None:
        await asyncio.sleep(0)
        if self.park_error is not None:
            raise self.park_error
        self.state = "up"

    async def check(self, *, timeout_s: float) -> None:
        self.checked += 1
        await asyncio.sleep(0)
        if self.check_hangs:
            async with asyncio.timeout(timeout_s):
                await asyncio.Event().wait()
        if self.state == "ended":
            raise HostError("it has ended")
        if self.check_error is not None:
            raise self.check_error

    async def adopt(self, request: ForkRequest, **_: object) -> Adopted:
        await asyncio.sleep(0)
        if self.adopt_error is not None:
            await self.aclose()
            raise self.adopt_error
        self.state, self.request = "adopted", request
        return Adopted(self, None, TIMINGS)

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        if self.state != "adopted":
            self.state = "ended"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass
class StandInFactory:
    """`errors` are raised by the next starts, one each; `gate` holds starts back while it is not set."""

    name: str = "stand-in"
    hardware: Hardware = HARDWARE
    traits: dict[str, str] = field(default_factory=lambda: dict(TRAITS))
    shares_memory: bool = True
    image: str = "default"
    next_generation: str = "one"
    generation: str = "one"
    where: str = "template"
    template: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        self.errors: list[Exception] = []
        self.adopt_errors: list[Exception] = []
        self.refresh_error: Exception | None = None
        self.started_at: list[float] = []
        self.made: list[StandInBaseVM] = []
        self.at_once, self.most_at_once = 0, 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = False
        self.rebuilt = 0
        self.told: list[dict[str, object]] = []
        self._numbers = itertools.count(1)

    @property
    def kind(self) -> Kind:
        return Kind(
            name=self.name,
            image=self.image,
            traits=self.traits,
            hardware=self.hardware,
            generation=self.generation,
            shares_memory=self.shares_memory,
            where=self.where,
            template=self.template,
            recipe=self.recipe,
            is_warmed=bool(self.recipe),
        )

    def alive(self) -> list[StandInBaseVM]:
        return [vm for vm in self.made if vm.state != "ended"]

    async def rebuild(self) -> None:
        self.rebuilt += 1

    async def refresh(self) -> None:
        if self.refresh_error is not None:
            raise self.refresh_error
        self.generation = self.next_generation

    async def get_base_vm(self, *, timeout_s: float | None = None) -> StandInBaseVM:
        self.started_at.append(asyncio.get_running_loop().time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            await self.refresh()
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.at_once -= 1
        vm = StandInBaseVM(next(self._numbers), self.generation, self.hardware)
        if self.adopt_errors:
            vm.adopt_error = self.adopt_errors.pop(0)
        self.made.append(vm)
        return vm

    async def aclose(self) -> None:
        self.closed = True


def sized(cpus: int, memory_mib: int, **others: object) -> Hardware:
    return replace(HARDWARE, cpus=cpus, memory_mib=memory_mib, **{"max_cpus": 0, "max_memory_mib": 0, **others})
