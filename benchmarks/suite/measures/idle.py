"""What a pool costs while nobody takes from it: CPU time of all its processes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.cpu import cpu_seconds_of
from benchmarks.suite.figures import Row, Samples, Target
from benchmarks.suite.measure import Measure
from benchmarks.suite.measures.pool import wait_full
from vmfork.config import FactoryConfig
from vmfork.factory import Factory

if TYPE_CHECKING:
    from benchmarks.suite.context import Context

_KEPT = 8
_WATCHED_S, _QUICK_WATCHED_S = 10.0, 2.0
# After the last machine was parked, garbage and timers of the filling are not what is measured.
_SETTLE_S = 1.0


async def run(context: Context) -> Samples:
    template = await context.template()
    config = FactoryConfig(template=True, template_name=template.name, build="background", cache=_KEPT)
    watched_s = _QUICK_WATCHED_S if context.quick else _WATCHED_S

    async with Factory(config, places=context.places) as factory:
        await wait_full(factory, _KEPT)
        await asyncio.sleep(_SETTLE_S)

        async def watch() -> float:
            begun, before = time.monotonic(), cpu_seconds()
            await asyncio.sleep(watched_s)
            return (cpu_seconds() - before) / (time.monotonic() - begun)

        samples = Samples()
        await context.interleave(samples, {"pool": watch}, rounds=1, quick_rounds=1, warm_up=0)
    return samples


def cpu_seconds() -> float:
    """CPU time of this process and of its children that run: the factory, its QEMUs and their keepers."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return time.process_time() + sum(cpu_seconds_of(pid) for pid in children)


MEASURE = Measure(
    name="idle",
    title="A pool of eight that nobody takes from",
    unit="1",
    run=run,
    budget_s=15.0,
    rows=(
        Row(
            key="idle.cpu",
            text="CPU of a pool of 8 that nobody takes from, of one core",
            kind="value",
            of="pool",
            unit="%",
            scale=100,
            target=Target(at_most=1),
            bounds="Every five seconds each machine is asked whether it answers.",
        ),
    ),
)
