"""What a decision of a cluster's directory takes at 1,000 nodes, none of which is real. No machine is started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.placement import KINDS, Simulation, time_directory
from benchmarks.suite.figures import Row, Samples, Target
from benchmarks.suite.measure import Measure

if TYPE_CHECKING:
    from benchmarks.suite.context import Context

_NODES, _TEMPLATES = 1000, 200
_SIMULATED_S, _QUICK_SIMULATED_S = 15.0, 3.0
_SIDES = {kind: f"directory_{kind}".rstrip("_") for kind in (*KINDS, "full")}
_TEXTS = {
    "": "no constraint",
    "label": "a label",
    "node": "a node by its name",
    "spread_node": "spread over nodes",
    "spread_zone": "spread over a label",
    "full": "no node has room",
}


async def run(context: Context) -> Samples:
    seconds = _QUICK_SIMULATED_S if context.quick else _SIMULATED_S

    def simulate() -> dict[str, float]:
        simulation = Simulation(nodes=_NODES, templates=_TEMPLATES, deaths=5, utilisation=0.7, seconds=seconds, seed=1)
        simulation.run()
        return asyncio.run(time_directory(simulation))

    async def one() -> dict[str, float]:
        told = await asyncio.to_thread(simulate)
        return {side: told[f"{side}_mean_ms"] / 1e3 for side in _SIDES.values()}

    samples = Samples()
    await context.interleave(samples, {"decisions": one}, rounds=3, quick_rounds=1, warm_up=0)
    return samples


MEASURE = Measure(
    name="placement",
    title="A cluster's decisions at 1,000 simulated nodes",
    unit="s",
    run=run,
    budget_s=180.0,
    is_asked_for=True,
    rows=tuple(
        Row(
            key=f"placement.{kind or 'any'}".replace("_", "-"),
            text=f"a decision of the directory at 1,000 simulated nodes: {_TEXTS[kind]}",
            kind="value",
            of=side,
            unit="ms",
            scale=1000,
            target=Target(at_most=1),
            bounds="Where no node that has the template has room, all others are looked at.",
        )
        for kind, side in _SIDES.items()
    ),
)
