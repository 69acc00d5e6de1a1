"""Where a machine is placed: cases by hand, and what holds for any nodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfork.cluster.placement import Constraints, Offer, Placed, Refusal, Wanted, count_most, filled, place
from vmfork.errors import ConfigError
from vmfork.machine.traits import SCRATCH

TRAITS = {"qemu.version": "7.2.22", "machine": "pc-q35-7.2", "accel": "tcg", "cpu_model": "qemu64"}
WANTED = Wanted(digest="d", traits=TRAITS, agent_protocol=3, share_mib=100, layers={"a": 600, "b": 400})


def offer(name: str, **changes: object) -> Offer:
    base = Offer(
        name=name,
        emulators=frozenset({"7.2.22"}),
        accels=frozenset({"tcg"}),
        protocols=frozenset({3}),
        total_mib=1000,
        to_give_mib=1000,
    )
    return replace(base, **changes)


def table(*offers: Offer) -> dict[str, Offer]:
    return {each.name: each for each in offers}


HOLDS = {"templates": frozenset({"d"})}


def decide(*offers: Offer, constraints: Constraints | None = None, seed: int = 0) -> Placed | Refusal:
    return place(WANTED, table(*offers), rng=Random(seed), constraints=constraints)


@pytest.mark.parametrize("seed", range(10))
def test_a_node_that_has_the_template_comes_first_though_it_is_fuller(seed) -> None:
    full = offer("has", **HOLDS, to_give_mib=100, running=9)
    assert decide(full, offer("a"), offer("b"), seed=seed) == Placed(node="has")


@pytest.mark.parametrize("seed", range(10))
def test_of_two_that_have_the_template_one_with_a_machine_ready_comes_first(seed) -> None:
    ready = offer("ready", **HOLDS, running=5, to_give_mib=500, pooled={"d": 1})
    other = offer("other", **HOLDS, pooled={"another": 3})
    assert decide(ready, other, seed=seed) == Placed(node="ready")


def test_a_holder_without_room_is_no_reason_to_refuse() -> None:
    found = decide(offer("has", **HOLDS, to_give_mib=99), offer("other"))
    assert found == Placed(node="other", has_template=False, lacking_bytes=1000)


def test_a_holder_that_is_strained_is_left_alone() -> None:
    found = decide(offer("has", **HOLDS, strained="all wait for memory"), offer("other"))
    assert isinstance(found, Placed)
    assert found.node == "other"


@pytest.mark.parametrize("seed", range(10))
def test_who_lacks_the_fewest_bytes_is_next(seed) -> None:
    some, most = offer("some", layers=frozenset({"b"})), offer("most", layers=frozenset({"a"}))
    found = decide(some, most, offer("none"), seed=seed)
    assert found == Placed(node="most", has_template=False, lacking_bytes=400)


def test_all_layers_are_not_yet_the_template() -> None:
    found = decide(offer("a", layers=frozenset({"a", "b"})))
    assert found == Placed(node="a", has_template=False)


def test_of_two_the_one_that_is_filled_less() -> None:
    nodes = [offer("busy", **HOLDS, running=5), offer("idle", **HOLDS)]
    assert {decide(*nodes, seed=seed) for seed in range(20)} == {Placed(node="idle")}


def test_who_waits_there_counts_as_a_machine() -> None:
    assert filled(WANTED, offer("a", waiting=3)) == filled(WANTED, offer("a", running=3))


def test_load_decides_where_memory_does_not() -> None:
    nodes = [offer("hot", **HOLDS, load=2.0), offer("cool", **HOLDS)]
    assert {decide(*nodes, seed=seed) for seed in range(20)} == {Placed(node="cool")}


def test_without_room_anywhere_the_holder_is_waited_for() -> None:
    full = {"to_give_mib": 0, "running": 10}
    assert decide(offer("a", **full), offer("has", **HOLDS, **full)) == Placed(node="has", waits=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"emulators": frozenset({"10.0.2"})}, "qemu.version is not 7.2.22"),
        ({"accels": frozenset({"kvm"})}, "accel is not tcg"),
        ({"protocols": frozenset({2})}, "protocol 3 of agents"),
        ({"is_draining": True}, "drained"),
        ({"hindrance": "it runs vmfork 0.0.9"}, "vmfork 0.0.9"),
        ({"total_mib": 99}, "less memory in all"),
    ],
)
def test_who_cannot_have_it_is_never_asked_and_says_why(changes, says) -> None:
    unfit = offer("unfit", **{**HOLDS, **changes})
    found = decide(unfit)
    assert isinstance(found, Refusal)
    assert says in found.reason
    assert decide(unfit, offer("fit")) == Placed(node="fit", has_template=False, lacking_bytes=1000)


def test_a_guest_that_has_seen_its_hosts_cpu_needs_that_one() -> None:
    wanted = replace(WANTED, traits={**TRAITS, "host_cpu": "that one"})
    nodes = table(offer("other", host_cpu="another"), offer("same", host_cpu="that one"))
    found = place(wanted, nodes, rng=Random(0))
    assert isinstance(found, Placed)
    assert found.node == "same"


def test_a_template_whose_machines_have_disks_goes_to_where_the_largest_part_of_it_is() -> None:
    traits = {**TRAITS, "image.disk": "root", SCRATCH: "64"}
    wanted = replace(WANTED, traits=traits, layers={"root": 900, "scratch": 50, "d": 50})
    full, empty = offer("has", **HOLDS, to_give_mib=0), offer("empty")
    of_the_same_image = offer("same image", layers=frozenset({"root", "another"}))
    found = place(wanted, table(full, empty, of_the_same_image), rng=Random(0))
    assert found == Placed(node="same image", has_template=False, lacking_bytes=100)
    assert place(wanted, table(empty), rng=Random(0)) == Placed(node="empty", has_template=False, lacking_bytes=1000)


def test_a_label_and_a_node_are_kept_to() -> None:
    west, east = offer("w", labels={"zone": "west"}), offer("e", **HOLDS, labels={"zone": "east"})
    for constraints in (Constraints(label="zone=west"), Constraints(node="w")):
        found = decide(west, east, constraints=constraints)
        assert isinstance(found, Placed)
        assert found.node == "w"


def test_a_label_that_nobody_has_is_refused_with_those_there_are() -> None:
    nodes = [offer("w", labels={"zone": "west"}), offer("e", labels={"zone": "east"})]
    found = decide(*nodes, constraints=Constraints(label="zone=north"))
    assert isinstance(found, Refusal)
    assert found.reason == "2 of 2: it has no label zone=north"
    assert found.hint == "nodes have zone=east, west"
    unknown = decide(*nodes, constraints=Constraints(label="rack"))
    assert isinstance(unknown, Refusal)
    assert unknown.hint == "no node has a label rack"


def test_a_node_that_is_not_there_is_refused_with_those_that_are() -> None:
    found = decide(offer("a"), offer("b"), constraints=Constraints(node="c"))
    assert found == Refusal(reason="no node is named 'c'", hint="there are a, b")


def test_a_named_node_that_cannot_says_why() -> None:
    found = decide(offer("a"), offer("b", is_draining=True), constraints=Constraints(node="b"))
    assert isinstance(found, Refusal)
    assert found.reason == "node 'b': it is being drained"


def test_no_nodes_at_all() -> None:
    assert isinstance(decide(), Refusal)


def test_spread_goes_before_the_template() -> None:
    nodes = [offer("a", **HOLDS), offer("b"), offer("c")]
    found = decide(*nodes, constraints=Constraints(spread="node", beside={"a": 1, "b": 1}))
    assert isinstance(found, Placed)
    assert found.node == "c"


def test_spread_over_a_label_counts_what_its_nodes_have_together() -> None:
    nodes = [offer(name, labels={"zone": name[0]}) for name in ("e1", "e2", "w1")]
    found = decide(*nodes, constraints=Constraints(spread="zone", beside={"e1": 2}))
    assert isinstance(found, Placed)
    assert found.node == "w1"


def test_spread_over_a_label_that_nobody_has_is_refused_with_those_there_are() -> None:
    found = decide(offer("a", labels={"zone": "x"}), offer("b"), constraints=Constraints(spread="rack"))
    assert found == Refusal(
        reason="no node has a label rack to spread over", hint="spread over node, or a label that there is: zone"
    )
    assert decide(offer("a"), constraints=Constraints(spread="rack")) == Refusal(
        reason="no node has a label rack to spread over", hint="spread over node"
    )


def test_spread_is_advice_where_only_one_has_room() -> None:
    nodes = [offer("a", to_give_mib=0), offer("b")]
    found = decide(*nodes, constraints=Constraints(spread="node", beside={"b": 7}))
    assert isinstance(found, Placed)
    assert found.node == "b"


@given(st.data(), st.sampled_from(["node", "zone"]), st.integers())
def test_spread_takes_a_group_that_has_the_fewest_of_those_with_room(data, key, seed) -> None:
    names = [f"n{number}" for number in range(data.draw(st.integers(1, 8)))]
    zones = {name: {"zone": data.draw(st.sampled_from("xyz"))} for name in names}
    room = {name: data.draw(st.sampled_from((0, 1000))) for name in names}
    nodes = table(*(offer(name, labels=zones[name], to_give_mib=room[name]) for name in names))
    beside = data.draw(st.dictionaries(st.sampled_from([*names, "gone"]), st.integers(1, 3)))
    found = place(WANTED, nodes, rng=Random(seed), constraints=Constraints(spread=key, beside=beside))
    assert isinstance(found, Placed)
    assert found.waits == (not any(room.values()))
    if not found.waits:
        group_of = {name: name if key == "node" else zones[name]["zone"] for name in names}
        counts = dict.fromkeys(group_of.values(), 0)
        for name in names:
            counts[group_of[name]] += beside.get(name, 0)
        assert room[found.node]
        assert counts[group_of[found.node]] == min(counts[group_of[name]] for name in names if room[name])


def test_as_many_as_the_cluster_could_have() -> None:
    nodes = table(offer("a"), offer("b", total_mib=250, to_give_mib=0), offer("c", accels=frozenset({"kvm"})))
    assert count_most(WANTED, nodes) == 12
    assert count_most(WANTED, nodes, Constraints(node="b")) == 2


def test_sixty_over_three_are_spread_evenly() -> None:
    nodes = table(*(offer(name, **HOLDS, total_mib=10_000, to_give_mib=10_000) for name in "abc"))
    rng, counts = Random(5), Counter[str]()
    for _ in range(60):
        found = place(WANTED, nodes, rng=rng)
        assert isinstance(found, Placed)
        counts[found.node] += 1
        taken = nodes[found.node]
        nodes[found.node] = replace(taken, running=taken.running + 1, to_give_mib=taken.to_give_mib - 100)
    assert all(abs(count - 20) <= 4 for count in counts.values()), counts


@st.composite
def any_nodes(draw) -> dict[str, Offer]:
    names = [f"n{number}" for number in range(draw(st.integers(0, 40)))]
    subsets = st.frozensets(st.sampled_from("ab"))
    return table(
        *(
            offer(
                name,
                templates=draw(st.sampled_from((frozenset(), frozenset({"d"})))),
                layers=draw(subsets),
                emulators=frozenset({draw(st.sampled_from(("7.2.22", "10.0.2")))}),
                to_give_mib=draw(st.integers(-50, 300)),
                total_mib=draw(st.integers(50, 300)),
                running=draw(st.integers(0, 5)),
                is_draining=draw(st.booleans()),
                strained=draw(st.sampled_from(("", "why"))),
            )
            for name in names
        )
    )


@given(any_nodes(), st.integers())
def test_what_holds_for_any_nodes(nodes, seed) -> None:
    """Who cannot is never taken; room goes before waiting, the template before a transfer, fewer bytes before more."""
    able = [o for o in nodes.values() if "7.2.22" in o.emulators and not o.is_draining and o.total_mib >= 100]
    roomy = [o for o in able if not o.strained and o.to_give_mib >= 100]
    holders = [o for o in roomy if "d" in o.templates]
    found = place(WANTED, nodes, rng=Random(seed))
    assert isinstance(found, Refusal) == (not able)
    if isinstance(found, Placed):
        taken = nodes[found.node]
        assert found.waits == (not roomy)
        assert taken in (holders or roomy or able)
        if not holders and roomy:
            lacking = [sum(s for d, s in WANTED.layers.items() if d not in o.layers) for o in roomy]
            assert found.lacking_bytes == min(lacking)
    listed = [name for name, o in nodes.items() if "d" in o.templates]
    assert place(WANTED, nodes, rng=Random(seed), holders=listed) == found


def find_best(nodes: dict[str, Offer], constraints: Constraints) -> tuple[frozenset[str], dict[str, object]] | None:
    """Looks at all nodes for all there is to know: those between which chance decides, and what is said of them."""
    able = [
        each
        for each in nodes.values()
        if "7.2.22" in each.emulators
        and not each.is_draining
        and each.total_mib >= 100
        and (not constraints.label or each.labels.get("zone") == constraints.label.partition("=")[2])
        and constraints.node in ("", each.name)
    ]
    roomy = [each for each in able if not each.strained and each.to_give_mib >= 100]
    among = roomy or able
    if not among:
        return None
    if roomy and constraints.spread and not constraints.node:
        group_of = {
            name: name if constraints.spread == "node" else o.labels.get("zone", "") for name, o in nodes.items()
        }
        counts = dict.fromkeys(group_of.values(), 0)
        for name, count in constraints.beside.items():
            if name in nodes:
                counts[group_of[name]] += count
        least = min(counts[group_of[each.name]] for each in roomy)
        among = [each for each in roomy if counts[group_of[each.name]] == least]
        if constraints.spread != "node":  # of groups that have as few the first is taken
            first = next(group for group in counts if group in {group_of[each.name] for each in among})
            among = [each for each in among if group_of[each.name] == first]
    lacking = {
        each.name: sum(size for layer, size in WANTED.layers.items() if layer not in each.layers) for each in among
    }
    lacking |= {each.name: -1 for each in among if "d" in each.templates}
    fewest = min(lacking.values())
    told = {"has_template": fewest == -1, "lacking_bytes": max(0, fewest), "waits": not roomy}
    return frozenset(name for name, size in lacking.items() if size == fewest), told


@given(any_nodes(), st.data(), st.integers())
def test_it_decides_as_one_who_looks_at_everything(nodes, data, seed) -> None:
    zones = st.sampled_from(("", "x", "y"))
    nodes = {name: replace(each, labels={"zone": data.draw(zones)}) for name, each in nodes.items()}
    counts = st.dictionaries(st.sampled_from([*nodes, "gone"]), st.integers(1, 2))
    constraints = Constraints(
        label=data.draw(st.sampled_from(("", "zone=x"))),
        node=data.draw(st.sampled_from(("", "", "", *nodes))),
        spread=data.draw(st.sampled_from(("", "node", "zone"))),
        beside=data.draw(counts),
    )
    found, best = place(WANTED, nodes, rng=Random(seed), constraints=constraints), find_best(nodes, constraints)
    assert isinstance(found, Refusal) == (best is None)
    if isinstance(found, Placed) and best is not None:
        names, told = best
        assert found.node in names
        assert found == Placed(node=found.node, **told)
        if len(names) == 2:
            assert filled(WANTED, nodes[found.node]) == min(filled(WANTED, nodes[name]) for name in names)


@pytest.mark.parametrize("label", ["=", "=west"])
def test_a_label_has_a_name(label) -> None:
    with pytest.raises(ConfigError, match="names no label"):
        Constraints(label=label)
