"""A fork of templates of every size. Their RAM files are sparse: what the guest never touched costs nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.suite.cpu import cpu_seconds_of
from benchmarks.suite.figures import NotRun, Plot, Row, Samples, Side, Target, at
from benchmarks.suite.measure import Measure

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.api.template import Template

_SIZES_MIB = (256, 512, 1024, 2048, 4096, 8192)
_QUICK_SIZES_MIB = (256, 2048, 8192)
_BOUNDS = (
    "Nothing in a fork touches RAM that the guest does not use: CPU time and page faults of QEMU differ by 5 % at most "
    "(docs/decisions/0008). What the ratio shows beyond that is noise, and how far the guests had come when they were "
    "frozen: two templates of one size differ as much."
)


def _forking(template: Template, size: int) -> Side:
    async def fork() -> dict[str, float]:
        begun = time.perf_counter()
        async with await template.fork() as vm:
            took = time.perf_counter() - begun
            return {at("fork", size): took, at("cpu", size): cpu_seconds_of(vm.pid)}

    return fork


async def run(context: Context) -> Samples:
    samples = Samples()
    sides: dict[str, Side] = {}
    for size in _QUICK_SIZES_MIB if context.quick else _SIZES_MIB:
        try:
            context.check_memory(size)
            sides[at("fork", size)] = _forking(await context.template(memory_mib=size), size)
        except NotRun as error:
            samples.skip(at("fork", size), str(error))
    await context.interleave(samples, sides, rounds=40, quick_rounds=5, warm_up=2)
    return samples


MEASURE = Measure(
    name="ram",
    title="A fork against the size of its RAM",
    unit="s",
    run=run,
    budget_s=35.0,
    rows=(
        Row(
            key="ram.8g",
            text="fork of 8 GiB, over a fork of 256 MiB",
            kind="ratio",
            of=at("fork", 8192),
            to=at("fork", 256),
            target=Target(at_least=0.9, at_most=1.1),
            bounds=_BOUNDS,
        ),
        Row(
            key="ram.2g",
            text="fork of 2 GiB, over a fork of 256 MiB",
            kind="ratio",
            of=at("fork", 2048),
            to=at("fork", 256),
            target=Target(at_least=0.9, at_most=1.1),
            bounds=_BOUNDS,
        ),
        Row(
            key="ram.8g-cpu",
            text="CPU time of QEMU for a fork of 8 GiB, over 256 MiB",
            kind="ratio",
            of=at("cpu", 8192),
            to=at("cpu", 256),
        ),
    ),
    plots=(
        Plot(
            name="ram",
            title="Fork against RAM",
            kind="line",
            sides={"fork": "fork, adopted"},
            x="guest RAM (MiB)",
            y="ms",
            scale=1000,
            log_x=True,
        ),
    ),
)
