"""On which node a machine is to be: values in, a decision out.

```
fits, may be asked, room     has the template   of two drawn at random one with a machine ready, or the one that is
                                                filled less
fits, may be asked, room     lacks some of it   the one that lacks the fewest bytes; of equals as above
fits, may be asked, no room                     as above, and whoever asked waits there
none                                            `Refusal`, with what stands against each
```
That a node has the template is a reason to prefer it, and none to refuse the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.machine.naming import has_label, label_test

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from random import Random

# So often two nodes are drawn before all are looked at: where nine in ten will do, all but never.
_DRAWS = 8
# As long a list is looked at as a whole; drawing from it would not be quicker.
_SHORT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a machine of a template asks of its node.

    `digest` names the template wherever it is. `traits` are those that its emulator must have, `share_mib` is what one
    machine is counted with. `layers` are what the template travels as, its disks being one each: digest and size in
    bytes.
    """

    digest: str
    traits: Mapping[str, str] = field(default_factory=dict)
    agent_protocol: int = 0
    share_mib: int = 1
    layers: Mapping[str, int] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of all that travels to a node that has none of it."""
        return sum(self.layers.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Where a machine may be.

    `label` is `KEY=VALUE` or `KEY`, `node` the name of one. `spread` is `node`, or the key of a label that some node
    has: of what it names one with the fewest machines of `beside` (node: how many) is taken that has room.
    """

    label: str = ""
    node: str = ""
    spread: str = ""
    beside: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.label and not self.label.partition("=")[0]:
            raise ConfigError("label", self.label, f"{self.label!r} names no label", hint="KEY=VALUE, or KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A node as it said of itself last.

    `emulators` are the versions of QEMU that it has, `protocols` those of agents that it speaks. `host_cpu` is its CPU
    where a guest sees that. `to_give_mib` can still be promised of its `total_mib`; `strained` says why it takes no
    machine although it has memory. `running` machines are there or were promised to be, `waiting` callers ask for one.
    Of templates of some digests so many machines are `pooled`, ready for whoever asks; they take nothing of what it has
    to give.
    `load` is how many tasks want each of its CPUs. `hindrance` is why it takes no machine at all, as one of another
    vmfork does.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    emulators: frozenset[str] = frozenset()
    accels: frozenset[str] = frozenset()
    protocols: frozenset[int] = frozenset()
    host_cpu: str = ""
    templates: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    total_mib: int = 0
    to_give_mib: int = 0
    strained: str = ""
    running: int = 0
    waiting: int = 0
    pooled: Mapping[str, int] = field(default_factory=dict)
    load: float = 0.0
    hindrance: str = ""
    is_draining: bool = False


# What a template's machine was, and whether a node has that.
_TRAITS: tuple[tuple[str, Callable[[Offer, str], bool]], ...] = (
    ("qemu.version", lambda offer, value: value in offer.emulators),
    ("accel", lambda offer, value: value in offer.accels),
    ("host_cpu", lambda offer, value: value == offer.host_cpu),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The machine is to be on `node`, to which `lacking_bytes` of its template travel before.

    `has_template` is false where it has to be put in force there, even when nothing travels. `waits`: there was no room
    anywhere.
    """

    node: str
    has_template: bool = True
    lacking_bytes: int = 0
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """No node can ever have the machine, as things stand: `reasons` has how many have which."""

    reason: str
    reasons: Mapping[str, int] = field(default_factory=dict)
    hint: str = ""


def place(
    wanted: Wanted,
    nodes: Mapping[str, Offer],
    *,
    rng: Random,
    constraints: Constraints | None = None,
    holders: Sequence[str] | None = None,
) -> Placed | Refusal:
    """Where a machine of what is `wanted` is to be. Chance is `rng`'s alone.

    `holders` are the nodes that have the template, where somebody keeps a list of them.
    """
    constraints = constraints or Constraints()
    if holders is None:
        holders = [name for name, offer in nodes.items() if wanted.digest in offer.templates]

    find = _make_finder(wanted, constraints)
    share_mib, is_labelled = wanted.share_mib, label_test(constraints.label)

    def has_room(offer: Offer) -> bool:
        return offer.to_give_mib >= share_mib and not offer.strained

    def has_both(offer: Offer) -> bool:
        return is_labelled(offer.labels) and has_room(offer)

    def can(offer: Offer) -> bool:
        return find(offer) is None

    seems = has_both if constraints.label else has_room
    named = constraints.node
    asked: Collection[str] = [named] if named in nodes else nodes
    if named in nodes or not constraints.spread:
        groups: Iterable[Collection[str]] = [asked]
    else:
        if (refusal := _check_spread(nodes, constraints.spread)) is not None:
            return refusal
        groups = _list_groups(nodes, constraints)
    for group in groups:
        if found := _place_among(wanted, group, nodes, holders, seems, can, rng):
            return found
    if found := _place_among(wanted, asked, nodes, holders, lambda offer: is_labelled(offer.labels), can, rng):
        return replace(found, waits=True)
    return _refuse(nodes, constraints, find)


def find_misfit(wanted: Wanted, offer: Offer) -> str | None:
    """What keeps the node from ever having such a machine, or `None`. The node itself looks closer."""
    traits = wanted.traits
    for trait, has in _TRAITS:
        value = traits.get(trait)
        if value and not has(offer, value):
            return f"{trait} is not {value}"
    if wanted.agent_protocol and wanted.agent_protocol not in offer.protocols:
        return f"its vmfork does not speak protocol {wanted.agent_protocol} of agents"
    return None


def count_most(wanted: Wanted, nodes: Mapping[str, Offer], constraints: Constraints | None = None) -> int:
    """As many such machines the nodes could have if they had no other."""
    limits = constraints or Constraints()
    able = (offer for offer in nodes.values() if _find_hindrance(wanted, offer, limits) is None)
    return sum(offer.total_mib // max(1, wanted.share_mib) for offer in able)


def filled(wanted: Wanted, offer: Offer) -> float:
    """How full the node is once it has one more: of the machines that it can have, and of those who wait with it.

    Its load counts half: a machine that has nothing to do takes no processor, and memory it keeps.
    """
    have = offer.running + offer.waiting
    most = have + max(0, offer.to_give_mib) // max(1, wanted.share_mib)
    return (have + 1) / max(1, most) + min(1.0, offer.load) / 2


def _make_finder(wanted: Wanted, constraints: Constraints) -> Callable[[Offer], str | None]:
    """As `_find_hindrance`. Nodes of one kind are looked at once: a decision may go through all there are."""
    known: dict[tuple[object, ...], str | None] = {}
    is_plain = not constraints.node
    has_wanted, no_label = label_test(constraints.label), _explain_no_label(constraints)

    def find(offer: Offer) -> str | None:
        if not is_plain:
            return _find_hindrance(wanted, offer, constraints)
        if not has_wanted(offer.labels):
            return no_label
        if offer.hindrance or offer.is_draining:
            return _find_hindrance(wanted, offer, constraints)
        kind = (offer.emulators, offer.accels, offer.protocols, offer.host_cpu, offer.total_mib)
        if kind not in known:
            known[kind] = _find_hindrance(wanted, offer, constraints)
        return known[kind]

    return find


def _find_hindrance(wanted: Wanted, offer: Offer, constraints: Constraints) -> str | None:
    """Why the node is not asked at all, or `None`."""
    if constraints.node and offer.name != constraints.node:
        return "it is another node"
    if not has_label(offer.labels, constraints.label):
        return _explain_no_label(constraints)
    if offer.hindrance or offer.is_draining:
        return offer.hindrance or "it is being drained"
    if wanted.share_mib > offer.total_mib:
        return "it has less memory in all than one machine is counted with"
    return find_misfit(wanted, offer)


def _explain_no_label(constraints: Constraints) -> str:
    return f"it has no label {constraints.label}"


def _check_spread(nodes: Mapping[str, Offer], key: str) -> Refusal | None:
    """What is said where nobody has the label: all nodes would be one group, and nothing be spread."""
    if key == "node" or not nodes or any(key in offer.labels for offer in nodes.values()):
        return None
    labels = {label for offer in nodes.values() for label in offer.labels}
    hint = f"spread over node, or a label that there is: {_list_some(labels)}" if labels else "spread over node"
    return Refusal(reason=f"no node has a label {key} to spread over", hint=hint)


def _list_groups(nodes: Mapping[str, Offer], constraints: Constraints) -> list[list[str]]:
    """The nodes by what they are spread over, those with the fewest machines of the kind first.

    Nodes that have as few are together where each is a group of its own.
    """
    key, beside = constraints.spread, constraints.beside
    by_count: dict[int, list[str]] = defaultdict(list)
    if key == "node":
        for name in nodes:
            by_count[beside.get(name, 0)].append(name)
        return [by_count[count] for count in sorted(by_count)]
    groups: dict[str, list[str]] = defaultdict(list)
    for name, offer in nodes.items():
        groups[offer.labels.get(key, "")].append(name)
    taken = Counter(dict.fromkeys(groups, 0))
    for name, count in beside.items():
        if name in nodes:
            taken[nodes[name].labels.get(key, "")] += count
    return [groups[group] for group in sorted(groups, key=taken.__getitem__)]


def _place_among(
    wanted: Wanted,
    names: Collection[str],
    nodes: Mapping[str, Offer],
    holders: Sequence[str],
    seems: Callable[[Offer], bool],
    can: Callable[[Offer], bool],
    rng: Random,
) -> Placed | None:
    """Of these nodes one that `seems` to do, and `can`. The latter is dear, so that it is asked of few."""
    inside = names if names is nodes else {*names}
    if len(inside) < len(nodes):
        holders = [name for name in holders if name in inside]
    # Who has the template lacks the fewest bytes; only where nobody of them will do all others are looked at.
    if node := _better_of_two(wanted, holders, nodes, lambda offer: seems(offer) and can(offer), rng):
        return Placed(node=node)
    for (lacks_template, lacking_bytes), group in _rank(wanted, names, nodes, seems):
        if node := _better_of_two(wanted, group, nodes, can, rng):
            return Placed(node=node, has_template=not lacks_template, lacking_bytes=lacking_bytes)
    return None


def _rank(
    wanted: Wanted, names: Collection[str], nodes: Mapping[str, Offer], seems: Callable[[Offer], bool]
) -> Iterable[tuple[tuple[bool, int], list[str]]]:
    """Those that seem to do, by whether they lack the template and how many bytes of it, who lacks the least first."""
    digest, layers, total = wanted.digest, wanted.layers, wanted.size_bytes
    known = {frozenset[str](): total}  # many nodes have the same
    ranks: dict[tuple[bool, int], list[str]] = defaultdict(list)
    lacking: dict[int, list[str]] = defaultdict(list)
    for name in names:
        offer = nodes[name]
        if not seems(offer):
            continue
        if digest in offer.templates:
            ranks[False, 0].append(name)
            continue
        size_bytes = known.get(offer.layers)
        if size_bytes is None:
            size_bytes = known[offer.layers] = sum(map(layers.__getitem__, layers.keys() - offer.layers))
        lacking[size_bytes].append(name)
    ranks.update({(True, size_bytes): group for size_bytes, group in lacking.items()})
    return sorted(ranks.items())


def _better_of_two(
    wanted: Wanted, names: Sequence[str], nodes: Mapping[str, Offer], will_do: Callable[[Offer], bool], rng: Random
) -> str | None:
    """Of two that will do, drawn at random, the one that is filled less. The better of all would draw everybody."""
    drawn: dict[str, Offer] = {}
    if len(names) > _SHORT:
        for _ in range(_DRAWS):
            offer = nodes.get(names[rng.randrange(len(names))])
            if offer is not None and offer.name not in drawn and will_do(offer):
                drawn[offer.name] = offer
            if len(drawn) == 2:
                break
    if len(drawn) < 2:
        able = [nodes[name] for name in names if name in nodes and will_do(nodes[name])]
        drawn = {offer.name: offer for offer in _draw_two(able, rng)}
    return min(
        drawn, key=lambda name: (not drawn[name].pooled.get(wanted.digest), filled(wanted, drawn[name])), default=None
    )


def _draw_two(able: Sequence[Offer], rng: Random) -> Sequence[Offer]:
    return able if len(able) < 2 else rng.sample(able, 2)


def _refuse(nodes: Mapping[str, Offer], constraints: Constraints, find: Callable[[Offer], str | None]) -> Refusal:
    if not nodes:
        return Refusal(reason="the cluster has no node that takes machines", hint="start vmfork on its nodes")
    if constraints.node and constraints.node not in nodes:
        return Refusal(reason=f"no node is named {constraints.node!r}", hint=f"there are {_list_some(nodes)}")
    found = Counter(filter(None, map(find, nodes.values())))
    if constraints.node:
        others = _list_some(nodes.keys() - {constraints.node})
        hint = f"name another, or none: there are {others}" if others else "mend that, or add a node"
        return Refusal(reason=f"node {constraints.node!r}: {find(nodes[constraints.node])}", reasons=found, hint=hint)
    told = "; ".join(f"{count} of {len(nodes)}: {reason}" for reason, count in found.most_common())
    return Refusal(reason=told, reasons=found, hint=_find_way(nodes, constraints))


def _find_way(nodes: Mapping[str, Offer], constraints: Constraints) -> str:
    key = constraints.label.partition("=")[0]
    values = sorted({offer.labels[key] for offer in nodes.values() if key in offer.labels})
    if constraints.label and not any(has_label(offer.labels, constraints.label) for offer in nodes.values()):
        return f"nodes have {key}={_list_some(values)}" if values else f"no node has a label {key}"
    return "build the template on a node of the kind that it is to run on, or add a node that it fits"


def _list_some(names: Collection[str]) -> str:
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
