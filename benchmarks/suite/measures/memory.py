"""What an idle VM costs in memory: forks, the same forks by hand, and VMs that were booted."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.figures import NotRun, Plot, Row, Samples, Target, at
from benchmarks.suite.measure import Measure
from vmfork.bench import raw
from vmfork.host.memory import read_memory

if TYPE_CHECKING:
    from benchmarks.suite.context import Context
    from vmfork.api.vm import VM
    from vmfork.host.memory import MemoryUse

_COUNTS = (1, 4, 16, 32, 64)
_QUICK_COUNTS = (32,)
_BOOTED = (1, 4)
# An idle fork under TCG costs about 65 MiB, most of it translated code.
_FORK_MIB = 80
_BOOTED_MIB = 300
# A machine that was just made still writes a little.
_SETTLE_S = 1.0
_MIB = 1 / 2**20
_BOUNDS = (
    "Most of a fork's private memory is QEMU's: its heap, and under TCG the code it translated; what the "
    "guest itself wrote is the smaller part."
)


def _note(samples: Samples, side: str, count: int, use: MemoryUse) -> None:
    samples.add(at(f"{side}_pss", count), use.pss)
    samples.add(at(f"{side}_rss", count), use.rss)
    samples.add(at(f"{side}_private", count), use.private)


async def _forks(context: Context, samples: Samples, counts: tuple[int, ...]) -> None:
    template = await context.template()
    async with AsyncExitStack() as stack:
        vms: list[VM] = []
        for count in counts:
            context.report(f"{count} forks")
            while len(vms) < count:
                vms.append(await stack.enter_async_context(await template.fork()))
            await asyncio.sleep(_SETTLE_S)
            for vm in vms:
                use = vm.memory()
                _note(samples, "fork", count, use)
                samples.add(at("guest_shared", count), use.guest_shared / use.guest_rss)


async def _by_hand(context: Context, samples: Samples, counts: tuple[int, ...]) -> None:
    source = await context.raw_source(await context.template())
    async with AsyncExitStack() as stack:
        forks: list[raw.Fork] = []
        for count in counts:
            context.report(f"{count} forks by hand")
            while len(forks) < count:
                fork = stack.enter_context(raw.Fork(source))
                fork.agent.adopt(fork.generation)
                forks.append(fork)
            await asyncio.sleep(_SETTLE_S)
            for fork in forks:
                _note(samples, "raw", count, read_memory(fork.process.pid))


async def _booted(context: Context, samples: Samples) -> None:
    async with AsyncExitStack() as stack:
        vms: list[VM] = []
        for count in _BOOTED[:1] if context.quick else _BOOTED:
            context.report(f"{count} booted")
            while len(vms) < count:
                vms.append(await stack.enter_async_context(await context.boot()))
            await asyncio.sleep(_SETTLE_S)
            for vm in vms:
                _note(samples, "booted", count, vm.memory())
                samples.add("booted_pss", vm.memory().pss)


async def run(context: Context) -> Samples:
    samples = Samples(rounds=1, wanted_rounds=1)
    counts = []
    for count in _QUICK_COUNTS if context.quick else _COUNTS:
        try:
            context.check_memory(count * _FORK_MIB)
            counts.append(count)
        except NotRun as error:
            samples.skip(at("fork_pss", count), str(error))
    await _forks(context, samples, tuple(counts))
    await _by_hand(context, samples, tuple(counts))
    try:
        context.check_memory(_BOOTED[-1] * _BOOTED_MIB)
        await _booted(context, samples)
    except NotRun as error:
        samples.skip("booted_pss", str(error))
    return samples


MEASURE = Measure(
    name="memory",
    title="Memory of an idle VM",
    unit="B",
    run=run,
    budget_s=45.0,
    rows=(
        Row(
            key="memory.raw",
            text="PSS of an idle fork (of 32), over the raw baseline",
            kind="ratio",
            of=at("fork_pss", 32),
            to=at("raw_pss", 32),
            target=Target(at_most=1.1),
            bounds=_BOUNDS,
        ),
        Row(
            key="memory.booted",
            text="PSS of an idle fork (of 32), over a cold-booted VM",
            kind="ratio",
            of=at("fork_pss", 32),
            to="booted_pss",
            target=Target(at_most=0.3),
            bounds=_BOUNDS,
        ),
        Row(
            key="memory.guest-shared",
            text="share of a fork's guest pages that are the template's",
            kind="value",
            of=at("guest_shared", 32),
            unit="%",
            scale=100,
            target=Target(at_least=90),
            smaller_is_better=False,
            bounds="What the guest's kernel and agent write to run, and to take on an identity, is the fork's own.",
        ),
        Row(
            key="memory.pss",
            text="PSS of an idle fork (of 32)",
            kind="value",
            of=at("fork_pss", 32),
            unit="MiB",
            scale=_MIB,
        ),
        Row(
            key="memory.booted-pss",
            text="PSS of a cold-booted VM",
            kind="value",
            of="booted_pss",
            unit="MiB",
            scale=_MIB,
        ),
    ),
    plots=(
        Plot(
            name="memory",
            title="Memory per VM against their number",
            kind="line",
            sides={
                "fork_rss": "fork, RSS",
                "fork_pss": "fork, PSS",
                "fork_private": "fork, private",
                "raw_pss": "by hand, PSS",
                "booted_pss": "booted, PSS",
            },
            x="VMs",
            y="MiB per VM",
            scale=_MIB,
            log_x=True,
        ),
    ),
)
