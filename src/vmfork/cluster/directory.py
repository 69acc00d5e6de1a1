"""Who has what: rebuilt from the nodes whenever it begins, and kept by asking them.

Nothing here is the only copy of anything: the disk and the processes of a node are the truth.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from vmfork.cluster.known import Known
from vmfork.cluster.placement import Refusal, count_most, place
from vmfork.cluster.terms import Ask, Decision, Machine
from vmfork.errors import NodeLost, NoNode, TemplateNotFound, VMForkError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.cluster.placement import Constraints, Offer
    from vmfork.cluster.terms import Held, Peers

_log = logging.getLogger("vmfork")

# What is known of a node is so old at most, while it answers.
LOOK_EVERY_S = 1.0
_REPORT_LIMIT_S = 20.0
# A look waits so long for a node at most: one that is cut off is no reason to know less of the others.
_LOOK_LIMIT_S = 10.0
# A report that was on its way when a machine was settled does not have it. After so long all that come do.
_SETTLED_S = 60.0
# So many nodes that have a template are told to one that has it not: should one end, the next is asked.
_SOURCES = 4
# Of so many nodes that were lost it is told what went with them.
_MOST_LOST = 100


@dataclass(frozen=True, slots=True)
class _Settled:
    """The machine of a key, since `at` of the monotonic clock; `is_sure` once no other node was found to have one."""

    machine: Machine
    at: float
    is_sure: bool


class Directory:
    """Tells where a machine is to be, and where machines and templates are."""

    def __init__(self, peers: Peers, *, version: str, rng: Random | None = None) -> None:
        self._peers = peers
        self._version = version
        self._rng = rng or Random()  # noqa: S311 - who gets which node is no secret
        self._known = Known()
        self._settled: dict[str, _Settled] = {}  # by key
        self._lost: dict[str, tuple[str, ...]] = {}
        self._first_look: asyncio.Task[None] | None = None
        self._hearing: dict[str, asyncio.Task[Exception | None]] = {}
        self._looking = asyncio.Lock()

    async def keep_looking(self) -> None:
        """Asks all nodes again and again, until it is cancelled."""
        while True:
            with suppress(VMForkError):
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)  # nodes that come tell nobody

    async def aclose(self) -> None:
        """No node is asked any more."""
        tasks = [*self._hearing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """All nodes were asked now. Of one that did not answer the last word holds, as long as it is there.

        One that lets us wait takes no machine until it answers, which is heard whenever it comes.
        """
        async with self._looking:
            names = await self._peers.list_nodes()
            for name in self._known.find_gone({*names}):
                self._forget(name)
            asked = {name: self._begin_hearing(name) for name in names}
            if asked:
                await asyncio.wait(asked.values(), timeout=_LOOK_LIMIT_S)
            for name, task in asked.items():
                if not task.done():
                    self._set_silent(name, f"no answer within {_LOOK_LIMIT_S:g} s")
            self._forget_settled()

    async def place(self, ask: Ask) -> Decision:
        """Where the machine is to be. Raises `TemplateNotFound` and `NoNode`."""
        await self._looked()
        if (there := self._find(ask.key)) is not None and there not in ask.avoid:
            return self._decide(there, self._get_held(ask.template), ask.key)
        if self._known.find_held(ask.template) is None:
            await self.look()  # it may just have been built
        held = self._get_held(ask.template)
        constraints = replace(ask.constraints, beside=self._known.count_beside(ask.template))
        holders = self._known.list_holders(held.wanted.digest)
        offers = self._offers(ask.avoid)
        found = place(held.wanted, offers, rng=self._rng, constraints=constraints, holders=holders)
        if isinstance(found, Refusal):
            raise _as_error(found)
        return self._decide(found.node, held, ask.key, waits=found.waits)

    async def check_many(self, template: str, count: int, constraints: Constraints) -> None:
        """Raises `NoNode` where no node can have one, and for more than the nodes could have if they had no others."""
        await self._looked()
        if self._known.find_held(template) is None:
            await self.look()
        wanted, offers = self._get_held(template).wanted, self._known.offers
        most = count_most(wanted, offers, constraints)
        if count > most:
            found = place(wanted, offers, rng=self._rng, constraints=constraints)
            if isinstance(found, Refusal):  # not one could be had
                raise _as_error(found)
            raise NoNode(
                f"{count} machines were asked for, and the nodes that may have them hold {most} at most",
                hint="ask for fewer, give them less memory, or add nodes",
            )

    async def settle(self, machine: Machine) -> Machine:
        """The machine that counts for its key: this one, or one that another node had made before."""
        self._known.take_back(machine.key)
        settled = self._settled.setdefault(machine.key, _Settled(machine, time.monotonic(), is_sure=False))
        if settled.is_sure and settled.machine.id == machine.id:
            return machine  # what a node has that was cut off meanwhile, and is back, counts no more
        for other in (settled.machine, *self._known.list_machines(machine.key)):
            # A node has one for a key at most: an earlier one of the same node has ended.
            if other.node != machine.node and await self._still_has(other):
                return self._settle(other)
        return self._settle(machine)

    def _settle(self, machine: Machine) -> Machine:
        self._settled[machine.key] = _Settled(machine, time.monotonic(), is_sure=True)
        return machine

    async def note_end(self, machine: Machine) -> None:
        """The machine has ended: its node tells so up to a second later, and its room can be given now."""
        self._known.note_end(machine)
        settled = self._settled.get(machine.key)
        if settled is not None and settled.machine.id == machine.id:
            del self._settled[machine.key]

    async def _still_has(self, machine: Machine) -> bool:
        error = await self._hear(machine.node)
        if isinstance(error, NodeLost) and error.is_cut:
            return False
        report = self._known.reports.get(machine.node)
        return report is not None and any(each.id == machine.id for each in report.machines)

    async def release(self, key: str) -> None:
        """The machine of that key is not on its way any more, or has ended."""
        self._known.take_back(key)
        self._settled.pop(key, None)

    async def drain(self, node: str) -> Sequence[tuple[str, str, tuple[str, ...]]]:
        """No machine is placed on the node any more; gives name, digest and sources of what no node has that stays."""
        await self.look()
        self._check_node(node)
        self._known.set_draining(node, drains=True)
        await self._peers.call(node, "set_draining", True)  # other directories learn it from the node
        stay = {name for name, offer in self._known.offers.items() if not (offer.is_draining or offer.hindrance)}
        return [
            (held.name, held.wanted.digest, (node,))
            for held in self._known.reports[node].held
            if stay.isdisjoint(self._known.list_holders(held.wanted.digest)) and self._known.is_latest(held)
        ]

    async def undrain(self, node: str) -> None:
        """The node takes machines again. Raises `NoNode` for one that is not there."""
        await self._looked()
        self._check_node(node)
        self._known.set_draining(node, drains=False)
        await self._peers.call(node, "set_draining", False)
        await self._hear(node)

    async def find_targets(
        self, template: str, nodes: Sequence[str] | None
    ) -> Sequence[tuple[str, str, Sequence[str]]]:
        """Node, digest and sources for each node that is to be given the template and has it not."""
        await self.look()
        held = self._get_held(template)
        holders = self._known.list_holders(held.wanted.digest)
        for name in nodes or ():
            self._check_node(name)
        reports = self._known.reports
        chosen = [name for name in (reports if nodes is None else nodes) if name not in holders]
        return [(name, held.wanted.digest, holders) for name in chosen if not reports[name].offer.hindrance]

    async def tell(self) -> Mapping[str, Any]:
        """All that is known: reports by node, and machines that nodes took along with them."""
        await self.look()
        offers = self._known.offers
        return {
            "reports": {name: replace(each, offer=offers[name]) for name, each in self._known.reports.items()},
            "lost": dict(self._lost),
        }

    async def _looked(self) -> None:
        """The nodes were asked at least once since we began."""
        if self._first_look is None:
            self._first_look = asyncio.ensure_future(self.look())
        if not self._first_look.done():
            await asyncio.shield(self._first_look)

    def _begin_hearing(self, name: str) -> asyncio.Task[Exception | None]:
        """The call under way to the node that was late, or a new one."""
        if name not in self._hearing:
            task = self._hearing[name] = asyncio.ensure_future(self._hear(name))
            task.add_done_callback(lambda _: self._hearing.pop(name))
        return self._hearing[name]

    def _set_silent(self, name: str, why: str) -> None:
        if self._known.set_silent(name):
            _log.warning("node %s does not tell what it has: %s", name, why)

    async def _hear(self, name: str) -> Exception | None:
        """What the node has is known; else why not."""
        try:
            report = await asyncio.wait_for(self._peers.call(name, "report"), _REPORT_LIMIT_S)
        except (VMForkError, TimeoutError) as error:
            self._set_silent(name, str(error))
            return error
        if report.version != self._version:
            other = f"it runs vmfork {report.version or '(unknown)'}, and the directory {self._version}"
            report = replace(report, offer=replace(report.offer, hindrance=other))
        self._known.hear(report)
        return None

    def _forget(self, name: str) -> None:
        gone = self._known.forget(name)
        self._lost.pop(name, None)
        self._lost[name] = tuple(machine.id for machine in gone.machines)
        while len(self._lost) > _MOST_LOST:
            del self._lost[next(iter(self._lost))]
        for key in [key for key, settled in self._settled.items() if settled.machine.node == name]:
            del self._settled[key]

    def _forget_settled(self) -> None:
        """Machines that were settled some time ago, and that their nodes do not tell of, have ended."""
        before = time.monotonic() - _SETTLED_S
        for key, settled in [*self._settled.items()]:
            if settled.at < before and settled.machine not in self._known.list_machines(key):
                del self._settled[key]

    def _find(self, key: str) -> str | None:
        """The node that the machine of that key is on, or on its way to."""
        settled = self._settled.get(key)
        if settled is not None and settled.machine.node in self._known.reports:
            return settled.machine.node
        return self._known.find_node(key)

    def _decide(self, node: str, held: Held, key: str, *, waits: bool = False) -> Decision:
        self._known.promise(key, node, held)
        digest = held.wanted.digest
        holders = self._known.list_holders(digest)
        # Drawn: where many nodes want it at once, each asks another.
        drawn = self._rng.sample(holders, min(_SOURCES, len(holders)))
        sources = tuple(name for name in drawn if name != node)
        return Decision(
            node=node,
            digest=digest,
            created_at=held.created_at,
            sources=sources,
            is_brought=node not in holders,
            waits=waits,
        )

    def _offers(self, avoid: frozenset[str]) -> Mapping[str, Offer]:
        """What nodes offer, less what they were promised since."""
        offers = self._known.offers
        refused = {name: replace(offers[name], hindrance="it has refused it") for name in avoid & offers.keys()}
        return {**offers, **refused} if refused else offers

    def _get_held(self, template: str) -> Held:
        held = self._known.find_held(template)
        if held is None:
            raise TemplateNotFound(template)
        return held

    def _check_node(self, node: str) -> None:
        if node not in self._known.reports:
            raise NoNode(f"no node is named {node!r}", hint=f"there are {', '.join(sorted(self._known.reports))}")


def _as_error(refusal: Refusal) -> NoNode:
    return NoNode(refusal.reason, reasons=refusal.reasons, hint=refusal.hint)
