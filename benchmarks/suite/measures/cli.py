"""What the command line adds to the library: a process from nothing to its end, with a fork in it."""

from __future__ import annotations

import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Plot, Row, Samples, Side, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.bench.fork import time_fork

if TYPE_CHECKING:
    from benchmarks.suite.context import Context


async def run(context: Context) -> Samples:
    template = await context.template()
    command = context.command("run", "-t", template.name, "--", "true")
    environment = context.environment()

    async def on_the_command_line() -> float:
        begun = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)  # noqa: ASYNC221
        return time.perf_counter() - begun

    samples = Samples()
    await on_the_command_line()  # bytecode is there from now on
    sides: dict[str, Side] = {"cli": on_the_command_line, "library": partial(time_fork, template)}
    await context.interleave(samples, sides, rounds=40, quick_rounds=3, warm_up=2)
    return samples


MEASURE = Measure(
    name="cli",
    title="The command line over the library",
    unit="s",
    run=run,
    budget_s=18.0,
    rows=(
        Row(
            key="cli.overhead",
            text="`vmfork run -- true`, above the library's fork and exec",
            kind="difference",
            of="cli",
            to="library",
            unit="ms",
            scale=1000,
            target=Target(at_most=100),
            bounds="Starting Python, importing the event loop and click, and ending the VM before the process may end.",
        ),
        milliseconds("cli.time", "`vmfork run -- true`, the whole command", of="cli"),
    ),
    plots=(
        Plot(
            name="cli",
            title="A fork and a program",
            kind="distribution",
            sides={"library": "in the library", "cli": "vmfork run -- true"},
            x="ms",
            y="share of runs",
            scale=1000,
        ),
    ),
)
