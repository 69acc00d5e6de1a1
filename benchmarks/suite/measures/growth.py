"""Growing a running fork: a parked CPU brought online, memory plugged in, both found in the guest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Samples, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.machine.fit import fit

if TYPE_CHECKING:
    from benchmarks.suite.context import Context


async def run(context: Context) -> Samples:
    template = await context.template(max_cpus=2, max_memory_mib=512)

    async def one() -> dict[str, float]:
        async with (await context.adopted_fork(template)).running as running:
            begun = time.perf_counter()
            await fit(running, cpus=2)
            online = time.perf_counter()
            await fit(running, memory_mib=512)
            return {"cpu": online - begun, "memory": time.perf_counter() - online}

    samples = Samples()
    await context.interleave(samples, {"growth": one}, rounds=8, quick_rounds=1)
    return samples


MEASURE = Measure(
    name="growth",
    title="Growing a running fork",
    unit="s",
    run=run,
    budget_s=12.0,
    rows=(
        milliseconds("growth.cpu", "a second CPU brought online", of="cpu"),
        milliseconds("growth.memory", "256 MiB plugged in", of="memory"),
    ),
)
