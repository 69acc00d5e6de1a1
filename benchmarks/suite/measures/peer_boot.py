"""Cold boot: what there is without forking."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.bench.fork import time_fork

if TYPE_CHECKING:
    from benchmarks.suite.context import Context


async def run(context: Context) -> Samples:
    template = await context.template()

    async def boot() -> float:
        begun = time.perf_counter()
        async with await context.boot() as vm:
            await vm.exec(["true"], check=True)
            return time.perf_counter() - begun

    samples = Samples()
    await context.interleave(
        samples, {"boot": boot, "fork": partial(time_fork, template)}, rounds=8, quick_rounds=1, warm_up=1
    )
    return samples


MEASURE = Measure(
    name="peer-boot",
    title="Cold boot",
    unit="s",
    run=run,
    budget_s=25.0,
    rows=(
        Row(
            key="peer-boot.speedup",
            text="cold boot to first exec, over a fork's",
            kind="ratio",
            of="boot",
            to="fork",
            target=Target(at_least=25),
            smaller_is_better=False,
            bounds="A faster boot shrinks this as well: image and kernel arguments are tuned for quick boots.",
        ),
        milliseconds("peer-boot.time", "cold boot to first exec", of="boot"),
    ),
)
