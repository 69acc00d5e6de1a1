"""What it costs to keep a fork's QEMU from the host: all that this host can do, beside nothing."""

from __future__ import annotations

import resource
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.suite.figures import NotRun, Row, Samples, Side, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.api.template import Template
from vmfork.config import VMConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.suite.context import Context

# Contained, contained without control groups, and neither.
_CONFIGS = {
    "kept": VMConfig(),
    "ungrouped": VMConfig(control_groups="off"),
    "open": VMConfig(isolation="off"),
}


async def run(context: Context) -> Samples:
    built = await context.template()
    samples = Samples()
    sides: dict[str, Side] = {}
    for name, config in _CONFIGS.items():
        template = await Template.open(built.name, config=config, places=context.places)
        async with await template.fork() as vm:
            samples.notes.append(f"{name}: {vm.isolation.level} ({', '.join(vm.isolation.parts) or 'nothing'})")
            if name == "kept" and vm.isolation.level == "none":
                raise NotRun(f"nothing is kept here: {'; '.join(vm.isolation.missing)}")
        sides[name] = partial(_measure, template, name)
    await context.interleave(samples, sides, rounds=40, quick_rounds=3, warm_up=2)
    return samples


async def _measure(template: Template, name: str) -> Mapping[str, float]:
    """CPU time of a fork with one program, from nothing to nothing: ours, QEMU's, its keeper's; and wall time."""
    before, begun = _cpu_seconds(), time.perf_counter()
    async with await template.fork() as vm:
        ready = time.perf_counter()
        await vm.exec(["true"], check=True)
    return {f"{name} cpu": _cpu_seconds() - before, f"{name} wall": ready - begun}


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended and were reaped: a fork leaves none of the others."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


MEASURE = Measure(
    name="isolation",
    title="A fork that is kept from the host, beside one that is not",
    unit="s",
    run=run,
    budget_s=35.0,
    rows=(
        Row(
            key="isolation.cpu",
            text="CPU time of a fork with all that keeps it from the host, over one with nothing",
            kind="ratio",
            of="kept cpu",
            to="open cpu",
            target=Target(at_most=1.05),
            bounds="Namespaces, sixty mounts of a root, a filter of 300 steps, control groups.",
        ),
        Row(
            key="isolation.cpu-more",
            text="CPU time that it costs",
            kind="difference",
            of="kept cpu",
            to="open cpu",
            unit="ms",
            scale=1000,
        ),
        Row(
            key="isolation.groups",
            text="of it, for control groups",
            kind="difference",
            of="kept cpu",
            to="ungrouped cpu",
            unit="ms",
            scale=1000,
        ),
        Row(
            key="isolation.wall",
            text="Wall time until it is handed out that it costs",
            kind="difference",
            of="kept wall",
            to="open wall",
            unit="ms",
            scale=1000,
        ),
        milliseconds("isolation.open", "CPU time of a fork with nothing", of="open cpu"),
    ),
)
