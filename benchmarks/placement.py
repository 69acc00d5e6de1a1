"""`python -m benchmarks.placement`: the cluster's own placement over simulated nodes. No machine is started.

Callers come at random (Poisson); which template each wants is skewed (Zipf), and a machine runs for some time
(exponential). Each template is on a few nodes at first. A node that is given a machine of a template which it has not
takes that over, layer by layer, before. Nodes die, with their machines, and come back empty. What is printed: how long
callers waited, what travelled, how evenly nodes were filled, and what a decision cost here, in time of the processor.
At the end the directory itself is told of the same nodes, with all machines that they have then, and asked: for what it
decides, with each kind of constraint, and where no node has room, and for a look at all of them, without the calls that
carry the reports.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import statistics
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

import click

from vmfork.cluster.directory import Directory
from vmfork.cluster.placement import Constraints, Offer, Placed, Wanted, place
from vmfork.cluster.terms import Ask, Held, Machine, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MIB = 1 << 20
_NODE_MIB = 64 * 1024
_SHARE_MIB = 160
_FORK_S = 0.1
# What a node takes in, in bytes a second: 10 Gbit/s, less what is lost on the way.
_TAKES_IN = 1e9
# All nodes are of one kind, and all templates were frozen on it.
_TRAITS = {"qemu.version": "8.2.0", "accel": "kvm", "host_cpu": "a processor"}
_PROTOCOL = 1
# So many decisions of the directory are timed.
_ASKED = 1000
# All templates have the layers of what they were built on.
_COMMON = {f"common-{number}": 8 * _MIB for number in range(4)}


@dataclass
class Node:
    """A simulated node: what it offers, and who waits in it."""

    offer: Offer
    born: int = 0
    arrives_at: dict[str, float] = field(default_factory=dict)
    queue: deque[tuple[float, Wanted]] = field(default_factory=deque)


@dataclass
class Tally:
    """What the run was like."""

    asked: int = 0
    given: int = 0
    local: int = 0
    refused: int = 0
    lost: int = 0
    placed_again: int = 0
    transfers: int = 0
    moved_bytes: int = 0
    waits_s: list[float] = field(default_factory=list)
    decisions_s: list[float] = field(default_factory=list)
    balance: list[float] = field(default_factory=list)


class Simulation:
    """Nodes, templates, and what happens to them in the order of time."""

    def __init__(
        self, *, nodes: int, templates: int, deaths: int, utilisation: float, seconds: float, seed: int
    ) -> None:
        self.rng = Random(seed)  # noqa: S311 - the same run again, not a secret
        self.tally = Tally()
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._life_s = 30.0
        self._end_s = seconds
        self.templates = [_make_template(number) for number in range(templates)]
        self.weights = [1 / (rank + 1) for rank in range(templates)]
        self.nodes = {f"node-{number}": Node(_make_offer(f"node-{number}")) for number in range(nodes)}
        self._holders: dict[str, list[str]] = defaultdict(list)
        self._offers = {name: node.offer for name, node in self.nodes.items()}
        for wanted in self.templates:
            for name in self.rng.sample(sorted(self.nodes), min(3, nodes)):
                self._hold(self.nodes[name], wanted)
        self._rate = utilisation * nodes * (_NODE_MIB / _SHARE_MIB) / self._life_s
        self._at(self.rng.expovariate(self._rate), self._arrive)
        for _ in range(deaths):
            self._at(self.rng.uniform(0.1, 0.9) * seconds, self._kill_one)
        for second in range(1, int(seconds) + 1):
            self._at(float(second), self._look)

    def run(self) -> Tally:
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            if self.now > self._end_s:
                break
            act()
        return self.tally

    def _at(self, when: float, act: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, act))

    def _arrive(self) -> None:
        self.tally.asked += 1
        (wanted,) = self.rng.choices(self.templates, self.weights)
        self._ask(self.now, wanted)
        self._at(self.now + self.rng.expovariate(self._rate), self._arrive)

    def _ask(self, since: float, wanted: Wanted) -> None:
        begun = time.thread_time()
        found = place(wanted, self._offers, rng=self.rng, holders=self._holders[wanted.digest])
        self.tally.decisions_s.append(time.thread_time() - begun)
        if not isinstance(found, Placed):
            self.tally.refused += 1
            return
        node = self.nodes[found.node]
        if found.waits:
            node.queue.append((since, wanted))
            self._change(node, waiting=len(node.queue))
            return
        self.tally.local += found.has_template
        if not found.has_template:
            self.tally.transfers += 1
            self.tally.moved_bytes += found.lacking_bytes
            self._hold(node, wanted)
            node.arrives_at[wanted.digest] = self.now + found.lacking_bytes / _TAKES_IN
        self._give(node, since, wanted)

    def _give(self, node: Node, since: float, wanted: Wanted) -> None:
        offer = node.offer
        self._change(node, running=offer.running + 1, to_give_mib=offer.to_give_mib - wanted.share_mib)
        ready = max(self.now, node.arrives_at.get(wanted.digest, 0.0)) + _FORK_S
        self.tally.given += 1
        self.tally.waits_s.append(max(0.0, ready - since - _FORK_S))
        born = node.born
        self._at(ready + self.rng.expovariate(1 / self._life_s), lambda: self._end(node, wanted, born))

    def _end(self, node: Node, wanted: Wanted, born: int) -> None:
        if node.born != born:
            return  # it went with the node
        offer = node.offer
        self._change(node, running=offer.running - 1, to_give_mib=offer.to_give_mib + wanted.share_mib)
        if node.queue:
            since, waiting = node.queue.popleft()
            self._change(node, waiting=len(node.queue))
            self._give(node, since, waiting)

    def _kill_one(self) -> None:
        node = self.nodes[self.rng.choice(sorted(self.nodes))]
        self.tally.lost += node.offer.running
        waiting, node.born = [*node.queue], node.born + 1
        for names in self._holders.values():
            if node.offer.name in names:
                names.remove(node.offer.name)
        node.queue.clear()
        node.arrives_at.clear()
        node.offer = self._offers[node.offer.name] = _make_offer(node.offer.name)
        for since, wanted in waiting:  # who waited there asks again
            self.tally.placed_again += 1
            self._ask(since, wanted)

    def _hold(self, node: Node, wanted: Wanted) -> None:
        offer = node.offer
        self._holders[wanted.digest].append(offer.name)
        self._change(node, templates=offer.templates | {wanted.digest}, layers=offer.layers.union(wanted.layers))

    def _change(self, node: Node, **changes: object) -> None:
        node.offer = self._offers[node.offer.name] = replace(node.offer, **changes)  # type: ignore[arg-type] # named

    def _look(self) -> None:
        used = [node.offer.running for node in self.nodes.values()]
        if self.now > self._life_s:
            self.tally.balance.append(statistics.pstdev(used) / max(1e-9, statistics.fmean(used)))


def _make_template(number: int) -> Wanted:
    own = {f"own-{number}-{part}": 4 * _MIB for part in range(8)}
    return Wanted(
        digest=f"template-{number}",
        traits=_TRAITS,
        agent_protocol=_PROTOCOL,
        share_mib=_SHARE_MIB,
        layers={**_COMMON, **own},
    )


def _make_offer(name: str) -> Offer:
    return Offer(
        name=name,
        labels={"zone": name[-1]},
        emulators=frozenset({_TRAITS["qemu.version"]}),
        accels=frozenset({"kvm", "tcg"}),
        protocols=frozenset({_PROTOCOL}),
        host_cpu=_TRAITS["host_cpu"],
        total_mib=_NODE_MIB,
        to_give_mib=_NODE_MIB,
    )


class _Reports:
    """The nodes of a simulation, as a directory hears of them."""

    def __init__(self, simulation: Simulation) -> None:
        self._held = {each.digest: Held(name=each.digest, created_at="", wanted=each) for each in simulation.templates}
        self._reports = {name: self._report(node.offer) for name, node in simulation.nodes.items()}

    def _report(self, offer: Offer) -> Report:
        held = tuple(self._held[digest] for digest in offer.templates)
        machines = tuple(
            Machine(id=f"{offer.name}-{number}", node=offer.name, template="template-0", key=f"{offer.name}-{number}")
            for number in range(offer.running)
        )
        return Report(offer=offer, version="1", held=held, machines=machines)

    async def list_nodes(self) -> Sequence[str]:
        return [*self._reports]

    async def call(self, node: str, verb: str, *args: object) -> Report:
        return self._reports[node]


# By their names in figures: what decisions of the directory are asked for with. And `full`: no node has room.
KINDS = {
    "": Constraints(),
    "label": Constraints(label="zone=3"),
    "node": Constraints(node="node-0"),
    "spread_node": Constraints(spread="node"),
    "spread_zone": Constraints(spread="zone"),
}


async def time_directory(simulation: Simulation) -> dict[str, float]:
    """What the directory takes for a look and for decisions, in ms, at the nodes as the simulation left them."""
    told = {"directory_machines": float(sum(node.offer.running for node in simulation.nodes.values()))}
    directory = Directory(_Reports(simulation), version="1", rng=simulation.rng)
    looks_s = []
    for _ in range(3):
        begun = time.thread_time()
        await directory.look()
        looks_s.append(time.thread_time() - begun)
    told["directory_look_ms"] = statistics.median(looks_s) * 1e3
    for kind, constraints in KINDS.items():
        told |= await _time_decisions(directory, simulation, kind, constraints)
    for node in simulation.nodes.values():
        node.offer = replace(node.offer, to_give_mib=0)
    full = Directory(_Reports(simulation), version="1", rng=simulation.rng)
    return {**told, **await _time_decisions(full, simulation, "full", Constraints())}


async def _time_decisions(
    directory: Directory, simulation: Simulation, kind: str, constraints: Constraints
) -> dict[str, float]:
    decisions_s = []
    await directory.place(Ask(template=simulation.templates[0].digest, key=f"first-{kind}"))  # it looks before
    for number in range(_ASKED):
        (wanted,) = simulation.rng.choices(simulation.templates, simulation.weights)
        ask = Ask(template=wanted.digest, key=f"{kind}-{number}", constraints=constraints)
        begun = time.thread_time()
        await directory.place(ask)
        decisions_s.append(time.thread_time() - begun)
    name = f"directory_{kind}".rstrip("_")
    return {
        f"{name}_mean_ms": statistics.fmean(decisions_s) * 1e3,
        f"{name}_p99_ms": _part(decisions_s, 0.99) * 1e3,
    }


def _part(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def _tell(tally: Tally) -> dict[str, float]:
    return {
        "asked": tally.asked,
        "given": tally.given,
        "refused": tally.refused,
        "lost_with_nodes": tally.lost,
        "placed_again": tally.placed_again,
        "waited_p50_s": _part(tally.waits_s, 0.5),
        "waited_p99_s": _part(tally.waits_s, 0.99),
        "waited_most_s": max(tally.waits_s, default=0.0),
        "where_the_template_was": tally.local / max(1, tally.given),
        "transfers": tally.transfers,
        "moved_gib": tally.moved_bytes / (1 << 30),
        "spread_of_machines": statistics.fmean(tally.balance) if tally.balance else 0.0,
        "decision_mean_ms": statistics.fmean(tally.decisions_s) * 1e3,
        "decision_p99_ms": _part(tally.decisions_s, 0.99) * 1e3,
    }


@click.command("placement", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--nodes", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--templates", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--deaths", default=20, show_default=True, type=click.IntRange(min=0), help="Nodes that die on the way.")
@click.option("--utilisation", default=0.7, show_default=True, help="Part of the memory that is asked for.")
@click.option("--seconds", default=60.0, show_default=True, help="Simulated time.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One document.")
def main(nodes: int, templates: int, deaths: int, utilisation: float, seconds: float, seed: int, as_json: bool) -> None:
    """How placement does over many nodes, none of which is real."""
    simulation = Simulation(
        nodes=nodes, templates=templates, deaths=deaths, utilisation=utilisation, seconds=seconds, seed=seed
    )
    told = {**_tell(simulation.run()), **asyncio.run(time_directory(simulation))}
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for name, value in told.items():
        digits = 3 if value % 1 else 0
        click.echo(f"{name.replace('_', ' '):<30}{value:>14,.{digits}f}")


if __name__ == "__main__":
    main()
