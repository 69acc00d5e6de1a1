"""Programs in a machine that runs: by its owner, by a client of its broker, on the command line, and by hand."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import line_of
from benchmarks.suite.figures import Row, Samples, Side, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.api.vm import VM

if TYPE_CHECKING:
    from benchmarks.suite.context import Context

_REPEATS = 20

_THREE_LINES = """
import sys, vmfork
with vmfork.VM.connect(sys.argv[1]) as vm:
    vm.exec(["true"], check=True)
"""


async def run(context: Context) -> Samples:
    template = await context.template()
    samples = Samples()
    async with AsyncExitStack() as owned:
        own = await owned.enter_async_context(template.fork())
        alone = await owned.enter_async_context(template.start())
        owned.push_async_callback(alone.stop, grace_s=0)
        client = await owned.enter_async_context(VM.connect(alone.id, places=context.places))

        async def warm(vm: VM) -> float:
            begun = time.perf_counter()
            for _ in range(_REPEATS):
                await vm.exec(["true"], check=True)
            return (time.perf_counter() - begun) / _REPEATS

        async def raw_warm() -> float:
            with line_of(own) as line:
                begun = time.perf_counter()
                for _ in range(_REPEATS):
                    line.exec_true()
                return (time.perf_counter() - begun) / _REPEATS

        execs: dict[str, Side] = {"raw": raw_warm, "owner": lambda: warm(own), "client": lambda: warm(client)}
        await context.interleave(samples, execs, rounds=30, quick_rounds=3, warm_up=2)

        environment = context.environment()

        async def timed(*argv: str) -> float:
            begun = time.perf_counter()
            subprocess.run(argv, env=environment, check=True, stdin=subprocess.DEVNULL)  # noqa: ASYNC221
            return time.perf_counter() - begun

        command = context.command("exec", alone.id, "true")
        starts: dict[str, Side] = {
            "command": lambda: timed(*command),
            "three-lines": lambda: timed(sys.executable, "-c", _THREE_LINES, alone.id),
        }
        await context.interleave(samples, starts, rounds=20, quick_rounds=3, warm_up=2)
    return samples


MEASURE = Measure(
    name="use",
    title="Programs in a machine that runs",
    unit="s",
    run=run,
    budget_s=30.0,
    is_asked_for=True,
    rows=(
        Row(
            key="use.exec",
            text="exec on a warm VM, over the least that one costs by hand",
            kind="ratio",
            of="owner",
            to="raw",
            target=Target(at_most=1.15),
            bounds="An event loop that is woken, and the checks of what a guest says, beside blocking reads.",
        ),
        Row(
            key="use.client",
            text="exec by a client of a broker, over exec by an owner",
            kind="ratio",
            of="client",
            to="owner",
            target=Target(at_most=1.1),
            bounds="Each frame passes through another process, which is woken twice.",
        ),
        Row(
            key="use.command",
            text="`vmfork exec ID true`, over three lines of Python in a fresh interpreter",
            kind="ratio",
            of="command",
            to="three-lines",
            target=Target(at_most=1.3),
            bounds="Importing click, and the modules of the command line.",
        ),
        milliseconds("use.command.time", "`vmfork exec ID true`, the whole command", of="command"),
    ),
)
