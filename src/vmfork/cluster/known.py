"""What the nodes told last, arranged so that a decision walks through no list of machines. Values; asks nobody.

```
told by a node    its offer, the templates it has in force, its machines, keys that it makes machines for
said by us        promises: a machine was placed there, and the node has not told of it yet; nodes that are drained, or
                  do not answer
```
An offer is as the node told it, less what it was promised since. It is made anew when one of both changes.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from vmfork.cluster.terms import SILENT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from vmfork.cluster.placement import Offer
    from vmfork.cluster.terms import Held, Machine, Report

T = TypeVar("T")

# A machine that was placed and that its node does not tell of is on its way for so long: from the directory to whoever
# asked, and from there to the node, which tells of it while it makes it, and for some time after its end.
PROMISE_S = 20.0


@dataclass(frozen=True, slots=True)
class Promise:
    """A machine of `template`, of that `digest`, is to be made on `node`, until `until` of the monotonic clock."""

    node: str
    template: str
    digest: str
    share_mib: int
    until: float


class Known:
    """Reports, promises and what follows from them. `reports` and `offers` are by node; they are not to be changed."""

    def __init__(self) -> None:
        self.reports: dict[str, Report] = {}
        self.offers: dict[str, Offer] = {}
        # By key; the oldest first.
        self.promises: dict[str, Promise] = {}
        self._draining: set[str] = set()
        self._silent: set[str] = set()
        self._promised: dict[str, set[str]] = defaultdict(set)
        self._machines: dict[str, dict[str, Machine]] = defaultdict(dict)
        self._asked: dict[str, dict[str, None]] = defaultdict(dict)
        self._held: dict[str, dict[str, Held]] = defaultdict(dict)
        self._beside: dict[str, Counter[str]] = defaultdict(Counter)
        self._holders: dict[str, dict[str, None]] = defaultdict(dict)
        # What the above come to, made when it is asked for and forgotten when they change.
        self._latest: dict[str, Held] = {}
        self._listed: dict[str, tuple[str, ...]] = {}

    def hear(self, report: Report) -> None:
        """The node of the report has told it; what it was promised and tells of is promised no more."""
        self._silent.discard(report.offer.name)
        self._take_in(report)

    def _take_in(self, report: Report) -> None:
        name = report.offer.name
        self._drop(name)
        self.reports[name] = report
        for machine in report.machines:
            self._machines[machine.key][name] = machine
            self._beside[machine.template][name] += 1
        for key in report.asked:
            self._asked[key][name] = None
        for held in report.held:
            self._held[held.name][name] = held
            self._latest.pop(held.name, None)
        for digest in report.offer.templates:
            self._holders[digest][name] = None
            self._listed.pop(digest, None)
        told = {*report.asked, *report.ended, *(machine.key for machine in report.machines)}
        for key in told & self._promised[name]:
            self._take_back(key)
        self._offer_anew(name)

    def note_end(self, machine: Machine) -> None:
        """The machine has ended, as its node will tell."""
        promise, report = self.promises.get(machine.key), self.reports.get(machine.node)
        if promise is not None and promise.node == machine.node:
            self.take_back(machine.key)
        held = self.find_held(machine.template)
        if report is None or held is None or machine not in report.machines:
            return
        offer = replace(
            report.offer,
            running=report.offer.running - 1,
            to_give_mib=report.offer.to_give_mib + held.wanted.share_mib,
        )
        left = tuple(each for each in report.machines if each != machine)
        self._take_in(replace(report, offer=offer, machines=left))

    def forget(self, name: str) -> Report:
        """The node has ended; gives its last word."""
        gone = self.reports[name]
        for key in [*self._promised[name]]:
            self._take_back(key)
        self._drop(name)
        del self._promised[name]
        self._draining.discard(name)
        self._silent.discard(name)
        return gone

    def find_gone(self, names: Collection[str]) -> Sequence[str]:
        """Those who told and are not among `names`. Of others that are not there nothing is kept."""
        self._silent &= {*names} | self.reports.keys()
        return [name for name in self.reports if name not in names]

    def set_silent(self, name: str) -> bool:
        """The node does not answer: nothing is placed there until it tells again. Whether that is news."""
        is_news = name not in self._silent
        self._silent.add(name)
        self._offer_anew(name)
        return is_news

    def set_draining(self, name: str, *, drains: bool) -> None:
        """Nothing is placed on the node, or again."""
        (self._draining.add if drains else self._draining.discard)(name)
        self._offer_anew(name)

    def promise(self, key: str, node: str, held: Held) -> None:
        """The machine of that key is to be made there. One that the node has told of already is no promise."""
        self.take_back(key)
        if node in self._machines.get(key, ()) or node in self._asked.get(key, ()):
            return
        until = time.monotonic() + PROMISE_S
        self.promises[key] = Promise(node, held.name, held.wanted.digest, held.wanted.share_mib, until)
        self._promised[node].add(key)
        self._beside[held.name][node] += 1
        self._offer_anew(node)

    def take_back(self, key: str) -> None:
        """Nothing is promised for the key."""
        if (promise := self.promises.get(key)) is not None:
            self._take_back(key)
            self._offer_anew(promise.node)

    def find_node(self, key: str) -> str | None:
        """The node that the machine of that key is on, or on its way to."""
        self._expire()
        if (promise := self.promises.get(key)) is not None and promise.node in self.reports:
            return promise.node
        return next(iter(self._machines.get(key) or self._asked.get(key) or ()), None)

    def list_machines(self, key: str) -> Sequence[Machine]:
        """Those that nodes have told of for the key."""
        return [*self._machines.get(key, {}).values()]

    def find_held(self, template: str) -> Held | None:
        """The template of that name that was frozen last."""
        if template not in self._latest:
            found = self._held.get(template, {}).values()
            if not found:
                return None
            self._latest[template] = max(
                found, key=lambda held: (held.created_at, held.wanted.digest, len(held.wanted.layers))
            )
        return self._latest[template]

    def is_latest(self, held: Held) -> bool:
        """Whether none of its name was frozen later. Of one that two nodes have, what they tell may differ."""
        latest = self.find_held(held.name)
        return latest is not None and latest.wanted.digest == held.wanted.digest

    def list_holders(self, digest: str) -> tuple[str, ...]:
        """The nodes that have the template of that digest in force."""
        if digest not in self._listed:
            self._listed[digest] = tuple(self._holders.get(digest, ()))
        return self._listed[digest]

    def count_beside(self, template: str) -> Mapping[str, int]:
        """How many machines of the template each node has, or is to make."""
        return self._beside.get(template, {})

    def _drop(self, name: str) -> None:
        """What the node told is not known any more."""
        report = self.reports.pop(name, None)
        self.offers.pop(name, None)
        if report is None:
            return
        for machine in report.machines:
            _take(self._machines, machine.key, name)
            self._count_down(machine.template, name)
        for key in report.asked:
            _take(self._asked, key, name)
        for held in report.held:
            _take(self._held, held.name, name)
            self._latest.pop(held.name, None)
        for digest in report.offer.templates:
            _take(self._holders, digest, name)
            self._listed.pop(digest, None)

    def _take_back(self, key: str) -> None:
        promise = self.promises.pop(key)
        self._promised[promise.node].discard(key)
        self._count_down(promise.template, promise.node)

    def _count_down(self, template: str, node: str) -> None:
        counts = self._beside[template]
        counts[node] -= 1
        if not counts[node]:
            del counts[node]
        if not counts:
            del self._beside[template]

    def _expire(self) -> None:
        now = time.monotonic()
        while self.promises and next(iter(self.promises.values())).until < now:
            self.take_back(next(iter(self.promises)))

    def _offer_anew(self, name: str) -> None:
        report = self.reports.get(name)
        if report is None:
            return
        offer, keys = report.offer, self._promised[name]
        if keys:
            promised = [self.promises[key] for key in keys]
            taken, to_give_mib = Counter(each.digest for each in promised), sum(each.share_mib for each in promised)
            offer = replace(
                offer,
                running=offer.running + len(keys),
                to_give_mib=offer.to_give_mib - to_give_mib,
                pooled={
                    digest: count - taken[digest] for digest, count in offer.pooled.items() if count > taken[digest]
                },
            )
        if name in self._silent:
            offer = replace(offer, hindrance=SILENT)
        if name in self._draining:
            offer = replace(offer, is_draining=True)
        self.offers[name] = offer


def _take(table: dict[str, dict[str, T]], key: str, name: str) -> None:
    """The node's part of what the table has for the key is gone, and the rest of it where nothing else is left."""
    if (found := table.get(key)) is not None:
        found.pop(name, None)
        if not found:
            del table[key]
