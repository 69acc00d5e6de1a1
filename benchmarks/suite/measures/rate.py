"""Forks per second, four at a time: made, run a program, ended."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks.suite import by_hand
from benchmarks.suite.figures import Plot, Row, Samples, Target
from benchmarks.suite.measure import Measure

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.api.template import Template

CONCURRENCY = 4
_FORKS = 16


async def forks_per_second(template: Template, total: int, *, concurrency: int) -> float:
    """How many forks a second are made, run a program and end, `concurrency` at a time."""
    left = iter(range(total))

    async def work() -> None:
        for _ in left:
            async with await template.fork(timeout_s=60) as vm:
                await vm.exec(["true"], check=True)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return total / (time.perf_counter() - begun)


async def run(context: Context) -> Samples:
    template = await context.template()
    source = await context.raw_source(template)

    async def with_vmfork() -> float:
        return await forks_per_second(template, _FORKS, concurrency=CONCURRENCY)

    async def with_raw() -> float:
        return by_hand.forks_per_second(source, _FORKS, concurrency=CONCURRENCY)

    samples = Samples()
    await context.interleave(samples, {"vmfork": with_vmfork, "raw": with_raw}, rounds=15, quick_rounds=2)
    return samples


MEASURE = Measure(
    name="rate",
    title="Forks per second, four at a time",
    unit="1/s",
    run=run,
    budget_s=30.0,
    rows=(
        Row(
            key="rate.concurrency-4",
            text="forks per second at concurrency 4, over the raw baseline",
            kind="ratio",
            of="vmfork",
            to="raw",
            target=Target(at_least=0.9),
            smaller_is_better=False,
            bounds="The cores are busy with QEMU; vmfork's own work on each fork comes on top, on the same cores.",
        ),
        Row(
            key="rate.value",
            text="forks per second at concurrency 4",
            kind="value",
            of="vmfork",
            unit="/s",
            smaller_is_better=False,
        ),
    ),
    plots=(
        Plot(
            name="rate",
            title="Forks per second, four at a time",
            kind="bars",
            sides={"vmfork": "vmfork", "raw": "raw baseline"},
            y="forks per second",
        ),
    ),
)
