"""What `import vmfork` adds to a bare Python, and what using it adds."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.suite.figures import Plot, Row, Samples, Target
from benchmarks.suite.measure import Measure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from benchmarks.suite.context import Context


def _running(code: str, environment: Mapping[str, str]) -> Callable[[], Awaitable[float]]:
    async def work() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)  # noqa: ASYNC221
        return time.perf_counter() - begun

    return work


async def run(context: Context) -> Samples:
    environment = context.environment()
    fork = "import vmfork.api.template, vmfork.machine.base, vmfork.agent.client"
    sides = {
        "python": _running("pass", environment),
        "import": _running("import vmfork", environment),
        "ready_to_fork": _running(fork, environment),
    }
    await sides["ready_to_fork"]()  # bytecode is there from now on
    samples = Samples()
    await context.interleave(samples, sides, rounds=50, quick_rounds=5, warm_up=2)
    return samples


MEASURE = Measure(
    name="import",
    title="Importing",
    unit="s",
    run=run,
    budget_s=8.0,
    rows=(
        Row(
            key="import.vmfork",
            text="`import vmfork`, above bare Python",
            kind="difference",
            of="import",
            to="python",
            unit="ms",
            scale=1000,
            target=Target(at_most=60),
            bounds="Names are imported when they are used; what is left is finding the package.",
        ),
        Row(
            key="import.ready",
            text="all that a fork needs, imported, above bare Python",
            kind="difference",
            of="ready_to_fork",
            to="python",
            unit="ms",
            scale=1000,
        ),
    ),
    plots=(
        Plot(
            name="import",
            title="Importing (medians)",
            kind="bars",
            sides={"python": "python -c pass", "import": "import vmfork", "ready_to_fork": "ready to fork"},
            y="ms",
            scale=1000,
        ),
    ),
)
