"""What is known of nodes is what follows from their last reports and our promises, whatever came in between."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cluster.fakes import HELD
from vmfork.cluster import known as known_module
from vmfork.cluster.known import Known
from vmfork.cluster.placement import Offer
from vmfork.cluster.terms import SILENT, Held, Machine, Report

NODES, KEYS, TEMPLATES = "abc", "uvwxyz", "pq"

templates = st.sampled_from(TEMPLATES)
nodes = st.sampled_from(NODES)
keys = st.sampled_from(KEYS)


def held_as(template: str, at: str) -> Held:
    wanted = replace(HELD.wanted, digest=f"{template}{at}")
    return replace(HELD, name=template, created_at=at, wanted=wanted)


@st.composite
def reports(draw) -> Report:
    name = draw(nodes)
    machines = tuple(
        Machine(id=f"{name}{key}{draw(st.integers(0, 1))}", node=name, template=draw(templates), key=key)
        for key in draw(st.sets(keys, max_size=3))
    )
    held = tuple(held_as(each, draw(st.sampled_from("12"))) for each in draw(st.sets(templates)))
    asked = tuple(draw(st.sets(keys, max_size=2)))
    offer = Offer(
        name=name,
        templates=frozenset(each.wanted.digest for each in held),
        total_mib=900,
        to_give_mib=700,
        running=len(machines),
        pooled=draw(st.dictionaries(st.sampled_from(["p1", "q1"]), st.integers(1, 3))),
    )
    return Report(offer=offer, held=held, machines=machines, asked=asked)


steps = st.one_of(
    st.tuples(st.just("hear"), reports()),
    st.tuples(st.just("forget"), nodes),
    st.tuples(st.just("silent"), nodes),
    st.tuples(st.just("drain"), nodes, st.booleans()),
    st.tuples(st.just("promise"), keys, nodes, templates),
    st.tuples(st.just("take_back"), keys),
    st.tuples(st.just("end"), nodes, keys),
)


def end(known: Known, told: dict[str, Report], node: str, key: str) -> None:
    """A machine of the key that the node has told of ended."""
    report, held = told[node], known.find_held
    for machine in (each for each in report.machines if each.key == key):
        known.note_end(machine)
        if (found := held(machine.template)) is not None:
            offer = replace(
                report.offer,
                running=report.offer.running - 1,
                to_give_mib=report.offer.to_give_mib + found.wanted.share_mib,
            )
            left = tuple(each for each in report.machines if each != machine)
            told[node] = replace(report, offer=offer, machines=left)


@given(st.lists(steps, max_size=30))
def test_it_is_what_follows_from_the_last_reports(done) -> None:
    known, told, silent, draining = Known(), {}, set(), set()
    for step in done:
        match step:
            case "hear", report:
                known.hear(report)
                told[report.offer.name] = report
                silent.discard(report.offer.name)
            case "forget", name if name in told:
                assert known.find_gone({*told} - {name}) == [name]
                assert known.forget(name) == told.pop(name)
                silent.discard(name)
                draining.discard(name)
            case "silent", name if name in told:
                assert known.set_silent(name) == (name not in silent)
                silent.add(name)
            case "drain", name, drains if name in told:
                known.set_draining(name, drains=drains)
                (draining.add if drains else draining.discard)(name)
            case "promise", key, name, template if name in told:
                known.promise(key, name, held_as(template, "1"))
            case "take_back", key:
                known.take_back(key)
            case "end", name, key if name in told:
                end(known, told, name, key)
    assert known.reports == told
    machines = [each for report in told.values() for each in report.machines]
    for key in KEYS:
        there = [each for each in machines if each.key == key]
        assert sorted(known.list_machines(key), key=repr) == sorted(there, key=repr)
        on_its_way = [name for name, report in told.items() if key in report.asked]
        found, promise = known.find_node(key), known.promises.get(key)
        if promise is not None:
            assert found == promise.node
            assert promise.node not in {*(each.node for each in there), *on_its_way}
        else:
            assert found in ({each.node for each in there} or {*on_its_way} or {None})
    for name, offer in known.offers.items():
        promised = [each for each in known.promises.values() if each.node == name]
        said = told[name].offer
        assert offer.running == said.running + len(promised)
        assert offer.to_give_mib == said.to_give_mib - sum(each.share_mib for each in promised)
        taken = Counter(each.digest for each in promised)
        assert offer.pooled == {each: n - taken[each] for each, n in said.pooled.items() if n > taken[each]}
        assert offer.hindrance == (SILENT if name in silent else "")
        assert offer.is_draining == (name in draining)
    assert known.offers.keys() == told.keys()
    assert {each.node for each in known.promises.values()} <= told.keys()
    for template in TEMPLATES:
        counted = Counter(each.node for each in machines if each.template == template)
        counted += Counter(each.node for each in known.promises.values() if each.template == template)
        assert dict(known.count_beside(template)) == dict(counted)
        have = [each for report in told.values() for each in report.held if each.name == template]
        assert known.find_held(template) == max(have, key=lambda each: each.created_at, default=None)
        for at in "12":
            holders = {name for name, report in told.items() if f"{template}{at}" in report.offer.templates}
            assert {*known.list_holders(f"{template}{at}")} == holders


def test_a_machine_that_ended_before_its_node_was_asked_is_promised_no_more() -> None:
    known = Known()
    report = Report(offer=Offer(name="a", total_mib=900, to_give_mib=700))
    known.hear(report)
    known.promise("k", "a", HELD)
    known.hear(report)
    assert known.offers["a"].running == 1
    known.hear(replace(report, ended=("k",)))
    assert known.offers["a"].running == 0


def test_a_promise_that_is_not_kept_is_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(known_module, "PROMISE_S", -1.0)
    known = Known()
    known.hear(Report(offer=Offer(name="a", total_mib=900, to_give_mib=700)))
    known.promise("k", "a", HELD)
    assert known.offers["a"].running == 1
    assert known.find_node("k") is None
    assert known.offers["a"] == known.reports["a"].offer
    assert not known.promises
