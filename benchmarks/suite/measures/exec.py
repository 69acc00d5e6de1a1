"""The round trip of a program in a running VM: the first, the second, and when all is warm."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Plot, Samples, milliseconds
from benchmarks.suite.measure import Measure

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.api.vm import VM

_REPEATS = 10


async def _time_true(vm: VM) -> float:
    begun = time.perf_counter()
    await vm.exec(["true"], check=True)
    return time.perf_counter() - begun


async def run(context: Context) -> Samples:
    template = await context.template()
    samples = Samples()

    async def one() -> dict[str, float]:
        async with await template.fork() as vm:
            first, second = await _time_true(vm), await _time_true(vm)
            for _ in range(3):
                await _time_true(vm)
            for _ in range(_REPEATS - 1):
                samples.add("warm", await _time_true(vm))
                samples.add("ping", await vm.ping())
            return {"cold": first, "second": second, "warm": await _time_true(vm), "ping": await vm.ping()}

    await context.interleave(samples, {"exec": one}, rounds=15, quick_rounds=2, warm_up=0)
    return samples


MEASURE = Measure(
    name="exec",
    title="The round trip of a program",
    unit="s",
    run=run,
    budget_s=8.0,
    rows=(
        milliseconds("exec.cold", "first exec of a fork", of="cold"),
        milliseconds("exec.warm", "exec on a warm VM", of="warm"),
        milliseconds("exec.ping", "round trip to the agent", of="ping"),
    ),
    plots=(
        Plot(
            name="exec",
            title="Round trip of a program (medians)",
            kind="bars",
            sides={"cold": "first", "second": "second", "warm": "warm", "ping": "agent alone"},
            y="ms",
            scale=1000,
        ),
    ),
)
