"""Who has what: rebuilt from the nodes whenever it begins, and kept by asking them.

Nothing here is the only copy of anything: the disk and the processes of a node are the truth.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

from vmfork.cluster.placement import Refusal, count_most, place
from vmfork.cluster.terms import SILENT, Ask, Decision, Machine, Report
from vmfork.errors import NoNode, TemplateNotFound, VMForkError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.cluster.placement import Constraints, Offer
    from vmfork.cluster.terms import Held, Peers

_log = logging.getLogger("vmfork")

# What is known of a node is so old at most, while it answers.
LOOK_EVERY_S = 1.0
_REPORT_LIMIT_S = 20.0
# A machine that was placed and that its node does not tell of is on its way for so long.
_PROMISE_S = 120.0


@dataclass(frozen=True, slots=True)
class _Promise:
    node: str
    template: str
    share_mib: int
    until: float


class Directory:
    """Tells where a machine is to be, and where machines and templates are."""

    def __init__(self, peers: Peers, *, version: str, rng: Random | None = None) -> None:
        self._peers = peers
        self._version = version
        self._rng = rng or Random()  # noqa: S311 - who gets which node is no secret
        self._reports: dict[str, Report] = {}
        self._promises: dict[str, _Promise] = {}
        self._settled: dict[str, Machine] = {}
        self._draining: set[str] = set()
        self._silent: set[str] = set()
        self._lost: dict[str, tuple[str, ...]] = {}
        self._first_look: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()

    async def keep_looking(self) -> None:
        """Asks all nodes again and again, until it is cancelled."""
        while True:
            with suppress(VMForkError):
                await self.look()
            await asyncio.sleep(LOOK_EVERY_S)  # nodes that come tell nobody

    async def look(self) -> None:
        """All nodes were asked now. Of one that did not answer the last word holds, as long as it is there."""
        async with self._looking:
            names = await self._peers.list_nodes()
            for name in self._reports.keys() - {*names}:
                self._forget(name)
            await asyncio.gather(*(self._hear(name) for name in names))

    async def place(self, ask: Ask) -> Decision:
        """Where the machine is to be. Raises `TemplateNotFound` and `NoNode`."""
        await self._looked()
        if (known := self._find(ask.key)) is not None and known not in ask.avoid:
            held = self._get_held(ask.template)
            return self._decide(known, held, ask.key)
        if self._find_held(ask.template) is None:
            await self.look()  # it may just have been built
        held = self._get_held(ask.template)
        beside: dict[str, int] = defaultdict(int)
        counted: list[Machine | _Promise] = [*self._list_machines(), *self._promises.values()]
        for each in counted:
            if each.template == ask.template:
                beside[each.node] += 1
        constraints = replace(ask.constraints, beside=beside)
        found = place(held.wanted, self._offers(ask.avoid), rng=self._rng, constraints=constraints)
        if isinstance(found, Refusal):
            raise NoNode(found.reason, reasons=found.reasons, hint=found.hint)
        return self._decide(found.node, held, ask.key, waits=found.waits)

    async def check_many(self, template: str, count: int, constraints: Constraints) -> None:
        """Raises `NoNode` for more machines than the nodes could have if they had no others."""
        await self._looked()
        if self._find_held(template) is None:
            await self.look()
        most = count_most(self._get_held(template).wanted, self._offers(), constraints)
        if count > most:
            raise NoNode(
                f"{count} machines were asked for, and the nodes that may have them hold {most} at most",
                hint="ask for fewer, give them less memory, or add nodes",
            )

    async def settle(self, machine: Machine) -> Machine:
        """The machine that counts for its key: this one, or one that another node had made before."""
        self._promises.pop(machine.key, None)
        told = [each for each in self._list_machines() if each.key == machine.key]
        settled = self._settled.setdefault(machine.key, machine)
        for other in (settled, *told):
            # A node has one for a key at most: an earlier one of the same node has ended.
            if other.node != machine.node and await self._still_has(other):
                self._settled[machine.key] = other
                return other
        self._settled[machine.key] = machine
        return machine

    async def _still_has(self, machine: Machine) -> bool:
        await self._hear(machine.node)
        report = self._reports.get(machine.node)
        return report is not None and any(each.id == machine.id for each in report.machines)

    async def release(self, key: str) -> None:
        """The machine of that key is not on its way any more, or has ended."""
        self._promises.pop(key, None)
        self._settled.pop(key, None)

    async def drain(self, node: str) -> Sequence[tuple[str, str, tuple[str, ...]]]:
        """No machine is placed on the node any more; gives name, digest and sources of what it alone has."""
        await self.look()
        if node not in self._reports:
            raise NoNode(f"no node is named {node!r}", hint=f"there are {', '.join(sorted(self._reports))}")
        self._draining.add(node)
        own = self._reports[node].held
        return [
            (held.name, held.wanted.digest, (node,))
            for held in own
            if self._list_holders(held.wanted.digest) == (node,) and self._find_held(held.name) == held
        ]

    async def undrain(self, node: str) -> None:
        """The node takes machines again."""
        self._draining.discard(node)

    async def find_targets(
        self, template: str, nodes: Sequence[str] | None
    ) -> Sequence[tuple[str, str, Sequence[str]]]:
        """Node, digest and sources for each node that is to be given the template and has it not."""
        await self.look()
        held = self._get_held(template)
        holders = self._list_holders(held.wanted.digest)
        unknown = {*(nodes or ())} - self._reports.keys()
        if unknown:
            raise NoNode(f"no node is named {min(unknown)!r}", hint=f"there are {', '.join(sorted(self._reports))}")
        chosen = [name for name in (self._reports if nodes is None else nodes) if name not in holders]
        return [(name, held.wanted.digest, holders) for name in chosen if not self._reports[name].offer.hindrance]

    async def tell(self) -> Mapping[str, Any]:
        """All that is known: reports by node, and machines that nodes took along with them."""
        await self.look()
        return {
            "reports": {name: replace(each, offer=self._offers()[name]) for name, each in self._reports.items()},
            "lost": dict(self._lost),
        }

    async def _looked(self) -> None:
        """The nodes were asked at least once since we began."""
        if self._first_look is None:
            self._first_look = asyncio.ensure_future(self.look())
        await asyncio.shield(self._first_look)

    async def _hear(self, name: str) -> None:
        try:
            report = await asyncio.wait_for(self._peers.call(name, "report"), _REPORT_LIMIT_S)
        except (VMForkError, TimeoutError) as error:
            if name not in self._silent:
                _log.warning("node %s does not tell what it has: %s", name, error)
            self._silent.add(name)
        else:
            self._silent.discard(name)
            if report.version != self._version:
                other = f"it runs vmfork {report.version or '(unknown)'}, and the directory {self._version}"
                report = replace(report, offer=replace(report.offer, hindrance=other))
            self._reports[name] = report
            known = {machine.key for machine in report.machines} | {*report.asked}
            for key in known & self._promises.keys():
                if self._promises[key].node == name:
                    del self._promises[key]

    def _forget(self, name: str) -> None:
        gone = self._reports.pop(name)
        self._lost[name] = tuple(machine.id for machine in gone.machines)
        self._draining.discard(name)
        self._silent.discard(name)
        for keyed in (self._promises, self._settled):
            for key in [key for key, where in keyed.items() if where.node == name]:
                del keyed[key]

    def _find(self, key: str) -> str | None:
        """The node that the machine of that key is on, or on its way to."""
        now = time.monotonic()
        for key_of_late in [key for key, promise in self._promises.items() if promise.until < now]:
            del self._promises[key_of_late]
        where = self._settled.get(key) or self._promises.get(key)
        if where is not None and where.node in self._reports:
            return where.node
        for name, report in self._reports.items():
            if key in report.asked or any(machine.key == key for machine in report.machines):
                return name
        return None

    def _decide(self, node: str, held: Held, key: str, *, waits: bool = False) -> Decision:
        until = time.monotonic() + _PROMISE_S
        self._promises[key] = _Promise(node, held.name, held.wanted.share_mib, until)
        sources = tuple(name for name in self._list_holders(held.wanted.digest) if name != node)
        return Decision(node=node, digest=held.wanted.digest, sources=sources, waits=waits)

    def _offers(self, avoid: frozenset[str] = frozenset()) -> dict[str, Offer]:
        """What nodes offer, less what they were promised since."""
        offers = {name: report.offer for name, report in self._reports.items()}
        for promise in self._promises.values():
            if (offer := offers.get(promise.node)) is not None:
                offers[promise.node] = replace(
                    offer, running=offer.running + 1, to_give_mib=offer.to_give_mib - promise.share_mib
                )
        for name in self._silent & offers.keys():
            offers[name] = replace(offers[name], hindrance=SILENT)
        for name in avoid & offers.keys():
            offers[name] = replace(offers[name], hindrance="it has refused it")
        for name in self._draining & offers.keys():
            offers[name] = replace(offers[name], is_draining=True)
        return offers

    def _list_machines(self) -> list[Machine]:
        return [machine for report in self._reports.values() for machine in report.machines]

    def _find_held(self, template: str) -> Held | None:
        """The template of that name that was frozen last."""
        found = [held for report in self._reports.values() for held in report.held if held.name == template]
        return max(found, key=lambda held: (held.created_at, held.wanted.digest, len(held.wanted.layers)), default=None)

    def _get_held(self, template: str) -> Held:
        held = self._find_held(template)
        if held is None:
            raise TemplateNotFound(template)
        return held

    def _list_holders(self, digest: str) -> tuple[str, ...]:
        return tuple(name for name, report in self._reports.items() if digest in report.offer.templates)
