"""Forks at once: from nothing to the moment when the last of N has run its first program."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import time_many
from benchmarks.suite.figures import NotRun, Plot, Row, Samples, Target, at, milliseconds
from benchmarks.suite.measure import Measure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.suite.context import Context
    from vmfork.api.template import Template
    from vmfork.bench.raw import Source

_COUNTS = (1, 2, 4, 8, 16, 32)
_QUICK_COUNTS = (1, 16)
# A fork under TCG, with all it writes.
_FORK_MIB = 100
_BOUNDS = (
    "All forks wait for the same cores, and all of vmfork runs on one thread beside them: what it adds to each fork "
    "adds up, where the baseline's threads wait in the kernel."
)


def _at_once(template: Template, count: int) -> Callable[[], Awaitable[float]]:
    async def work() -> float:
        async with AsyncExitStack() as stack:

            async def one() -> None:
                vm = await template.fork(timeout_s=60)
                stack.push_async_callback(vm.aclose)
                await vm.exec(["true"], check=True)

            begun = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(one())
            return time.perf_counter() - begun

    return work


def _by_hand(source: Source, count: int) -> Callable[[], Awaitable[float]]:
    async def work() -> float:
        return time_many(source, count)

    return work


async def run(context: Context) -> Samples:
    template = await context.template()
    source = await context.raw_source(template)
    samples, sides = Samples(), {}
    for count in _QUICK_COUNTS if context.quick else _COUNTS:
        try:
            context.check_memory(count * _FORK_MIB)
        except NotRun as error:
            samples.skip(at("vmfork", count), str(error))
            continue
        sides[at("vmfork", count)] = _at_once(template, count)
        sides[at("raw", count)] = _by_hand(source, count)
    await context.interleave(samples, sides, rounds=12, quick_rounds=2)
    return samples


MEASURE = Measure(
    name="concurrency",
    title="Forks at once, to the first program of the last",
    unit="s",
    run=run,
    budget_s=30.0,
    rows=(
        Row(
            key="concurrency.16",
            text="16 forks at once, over the raw baseline's 16",
            kind="ratio",
            of=at("vmfork", 16),
            to=at("raw", 16),
            target=Target(at_most=1.15),
            bounds=_BOUNDS,
        ),
        milliseconds("concurrency.16-time", "16 forks at once, until the last ran a program", of=at("vmfork", 16)),
    ),
    plots=(
        Plot(
            name="concurrency",
            title="Forks at once, until the last ran a program",
            kind="line",
            sides={"vmfork": "vmfork", "raw": "raw baseline"},
            x="forks at once",
            y="ms",
            scale=1000,
            log_x=True,
            log_y=True,
        ),
    ),
)
