"""quicksand (PyPI `quick-sandbox`), an async Python API over QEMU, with its own Alpine guest, under TCG like ours."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.context import MEMORY_MIB
from benchmarks.suite.figures import NotRun, Row, Samples, Side, Target
from benchmarks.suite.measure import Measure
from benchmarks.suite.peers import quicksand_driver
from benchmarks.suite.peers.install import quicksand_python
from vmfork.bench.fork import time_fork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.suite.context import Context

# One fresh sandbox takes 15 to 30 s under TCG.
_ANSWER_LIMIT_S = 180.0
_END_LIMIT_S = 30.0


@asynccontextmanager
async def _driver(python: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """quicksand_driver.py in quicksand's own Python; it and its machines are gone afterwards."""
    process = await asyncio.create_subprocess_exec(
        str(python),
        str(Path(quicksand_driver.__file__)),
        str(MEMORY_MIB),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(_END_LIMIT_S):
                await process.wait()
        finally:
            with suppress(ProcessLookupError):  # its session: what it started too
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _ask(process: asyncio.subprocess.Process, what: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(what.encode() + b"\n")
    async with asyncio.timeout(_ANSWER_LIMIT_S):
        line = await process.stdout.readline()
    told = json.loads(line or b'{"error": "its process ended"}')
    if "error" in told:
        raise NotRun(f"quicksand failed: {told['error']}")
    return float(told["seconds"])


async def run(context: Context) -> Samples:
    python = quicksand_python(context.peers)
    if not (python.parent / "quicksand").exists():
        raise NotRun("quicksand is not installed: python -m benchmarks.suite --peers install")
    template = await context.template()
    samples = Samples()
    async with _driver(python) as process:

        async def fresh() -> float:
            return await _ask(process, "fresh")

        async def revert() -> float:
            return await _ask(process, "revert")

        async def fork() -> float:
            return await time_fork(template)

        async def several(side: str) -> dict[str, float]:
            # A fresh sandbox takes so long that there are few rounds: what is quick is measured more than once in each.
            work, name = (fork, "fork") if side == "fork" else (revert, "revert")
            for _ in range(4):
                samples.add(name, await work())
            return {name: await work()}

        sides: dict[str, Side] = {"fresh": fresh, "fork": lambda: several("fork"), "revert": lambda: several("revert")}
        await context.interleave(samples, sides, rounds=3, quick_rounds=1, warm_up=0)
    return samples


MEASURE = Measure(
    name="peer-quicksand",
    title="quicksand",
    unit="s",
    run=run,
    budget_s=45.0,
    rows=(
        Row(
            key="peer-quicksand.speedup",
            text="quicksand, fresh VM to first exec, over a fork's",
            kind="ratio",
            of="fresh",
            to="fork",
            target=Target(at_least=100),
            smaller_is_better=False,
            bounds="It boots Alpine under TCG; both sides slow down together where the host is busy.",
        ),
        Row(
            key="peer-quicksand.revert",
            text="quicksand, revert to a checkpoint and exec, over a fork's first exec",
            kind="ratio",
            of="revert",
            to="fork",
            smaller_is_better=False,
        ),
        Row(key="peer-quicksand.time", text="quicksand, fresh VM to first exec", kind="value", of="fresh", unit="s"),
    ),
)
