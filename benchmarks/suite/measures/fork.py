"""One fork, by phase, beside the same fork by hand: with the adopt handshake, and without it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Plot, Row, Samples, Side, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.bench import raw
from vmfork.machine.trace import detailed_timings

if TYPE_CHECKING:
    from benchmarks.suite.context import Context

_BOUNDS = (
    "What is left above the raw baseline is Python: the event loop's wake-ups, the record and folder of each VM, and "
    "the checks of what the guest confirmed. It is a few milliseconds whatever the guest does, so it weighs more the "
    "faster the baseline gets."
)


async def run(context: Context) -> Samples:
    template = await context.template()
    source = await context.raw_source(template)

    async def by_hand() -> float:
        return raw.time_one(source)

    async def by_hand_not_adopted() -> float:
        return raw.time_one(source, adopt=False)

    async def with_vmfork() -> dict[str, float]:
        begun = time.perf_counter()
        async with await template.fork() as vm:
            ready = time.perf_counter()
            await vm.exec(["true"], check=True)
            done = time.perf_counter()
            timings = vm.timings
        return {
            "spawn": timings.spawn_s,
            "answer": timings.answer_s,
            "clock": timings.clock_s,
            "thaw": timings.thaw_s,
            "fork": ready - begun,
            "exec": done - ready,
            "first_exec": done - begun,
        }

    async def told_apart() -> dict[str, float]:
        with detailed_timings():
            vm = await template.fork()
        await vm.aclose()
        return {"load": vm.timings.load_s, "adopt": vm.timings.adopt_s}

    samples = Samples()
    sides: dict[str, Side] = {
        "raw": by_hand,
        "raw_not_adopted": by_hand_not_adopted,
        "vmfork": with_vmfork,
        "phases": told_apart,
    }
    await context.interleave(samples, sides, rounds=60, quick_rounds=5, warm_up=2)
    return samples


MEASURE = Measure(
    name="fork",
    title="A fork, to the result of its first program",
    unit="s",
    run=run,
    budget_s=40.0,
    rows=(
        Row(
            key="fork.first-exec",
            text="fork to first exec, over the raw baseline",
            kind="ratio",
            of="first_exec",
            to="raw",
            target=Target(at_most=1.15),
            bounds=_BOUNDS,
        ),
        milliseconds("fork.ready", "fork, adopted and checked", of="fork"),
        milliseconds("fork.first-exec-time", "fork to first exec", of="first_exec"),
        milliseconds("fork.raw-time", "raw baseline: fork to first exec by hand", of="raw"),
        Row(
            key="fork.adopt-cost",
            text="what adopting costs the raw baseline",
            kind="difference",
            of="raw",
            to="raw_not_adopted",
            unit="ms",
            scale=1000,
        ),
    ),
    plots=(
        Plot(
            name="fork-phases",
            title="A fork by phase (medians)",
            kind="stack",
            sides={
                "spawn": "spawn",
                "load": "load, guest awake",
                "adopt": "adopt",
                "clock": "clock",
                "thaw": "hooks, files",
                "exec": "first exec",
            },
            y="ms",
            scale=1000,
        ),
        Plot(
            name="fork-distribution",
            title="Fork to first exec",
            kind="distribution",
            sides={
                "first_exec": "vmfork",
                "raw": "raw baseline",
                "raw_not_adopted": "raw baseline without adopt",
            },
            x="ms",
            y="share of forks",
            scale=1000,
        ),
    ),
)
