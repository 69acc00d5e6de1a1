"""Taking a machine from a factory's pool, to the result of its first program; beside a warm program and one adopt."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Plot, Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.adopt.handshake import adopt
from vmfork.adopt.identity import Identity
from vmfork.api.vm import VM
from vmfork.config import FactoryConfig
from vmfork.factory import Factory

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.machine.base import Adopted

_KEPT = 4
_WARM_UP = 3
# A machine for the pool takes longer than its fork: it is exercised before it is put there.
_REFILL_LIMIT_S = 60.0
_REFILL_PAUSE_S = 0.05
_BOUND = "An absolute time, so the machine's: a warm exec and an adopt on a running VM, the row below, take most of it."


async def _warm_exec_and_adopt(adopted: Adopted) -> float:
    """Seconds that a running, warm VM takes for one program and one adopt."""
    vm, agent = VM(*adopted), adopted.running.agent
    identity = Identity.fresh(vm.id, template=vm.template)
    begun = time.perf_counter()
    await adopt(agent, identity, timeout_s=30)
    await vm.exec(["true"], check=True)
    return time.perf_counter() - begun


async def wait_full(factory: Factory, kept: int) -> None:
    """The pool holds `kept` machines, so that nothing is made beside what is measured."""
    end = time.monotonic() + _REFILL_LIMIT_S
    while (cache := factory.stats().cache) is None or cache.ready < kept:
        if time.monotonic() > end:
            raise TimeoutError("the pool was not full in time")
        await asyncio.sleep(_REFILL_PAUSE_S)


async def run(context: Context) -> Samples:
    template = await context.template()
    samples = Samples()
    # A template that is there is used with `background`, and is the factory's to build otherwise.
    config = FactoryConfig(template=True, template_name=template.name, build="background", cache=_KEPT)
    fork = await context.adopted_fork(template)
    async with fork.running, Factory(config, places=context.places) as factory:
        for _ in range(_WARM_UP):
            await _warm_exec_and_adopt(fork)

        async def take() -> dict[str, float]:
            await wait_full(factory, _KEPT)
            begun = time.perf_counter()
            async with await factory.get_vm() as vm:
                taken = time.perf_counter()
                await vm.exec(["true"], check=True)
                return {"take": taken - begun, "take_exec": time.perf_counter() - begun}

        async def warm() -> float:
            await wait_full(factory, _KEPT)
            return await _warm_exec_and_adopt(fork)

        await context.interleave(samples, {"take": take, "warm": warm}, rounds=30, quick_rounds=3)
    return samples


MEASURE = Measure(
    name="pool",
    title="Taking a machine from a pool",
    unit="s",
    run=run,
    budget_s=20.0,
    rows=(
        Row(
            key="pool.take",
            text="pool take to first exec, over a warm exec and an adopt",
            kind="ratio",
            of="take_exec",
            to="warm",
            target=Target(at_most=1.5),
            bounds=(
                "What a parked machine's guest has not run yet is translated when it is first run; and QEMU's monitor "
                "is asked to let it run, one round trip."
            ),
        ),
        Row(
            key="pool.time",
            text="pool take to first exec",
            kind="value",
            of="take_exec",
            unit="ms",
            scale=1000,
            target=Target(at_most=10),
            bounds=_BOUND,
        ),
        Row(
            key="pool.p99",
            text="pool take to first exec, 99th percentile",
            kind="value",
            of="take_exec",
            statistic="p99",
            unit="ms",
            scale=1000,
            target=Target(at_most=40),
            bounds=_BOUND,
        ),
        milliseconds("pool.warm", "warm exec and an adopt on a running VM", of="warm"),
    ),
    plots=(
        Plot(
            name="pool",
            title="From a pool to the first program",
            kind="distribution",
            sides={"warm": "warm exec and adopt", "take": "take", "take_exec": "take and first exec"},
            x="ms",
            y="share of takes",
            scale=1000,
        ),
    ),
)
