"""The front and the directory, over nodes that only say they made a machine: nothing is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.unit.cluster.fakes import HELD, WANTED, FakeNode, FakeSite
from vmfork.cluster import cluster as cluster_module
from vmfork.cluster import directory as directory_module
from vmfork.cluster import vm as vm_module
from vmfork.cluster.cluster import Cluster
from vmfork.cluster.placement import Constraints
from vmfork.cluster.terms import Ask, Machine
from vmfork.cluster.vm import ClusterVM
from vmfork.errors import (
    ArtifactError,
    Closed,
    ClusterError,
    ConfigError,
    DeadlineExceeded,
    ExecError,
    HostError,
    NodeLost,
    NoNode,
    NoRoom,
    TemplateNotFound,
    TemplateUnfit,
    VMForkError,
    VMNotFound,
)


def three(**changes) -> FakeSite:
    return FakeSite(*(FakeNode(name, **changes) for name in "abc"))


async def test_sixty_machines_of_many_callers_are_all_there_and_spread() -> None:
    site = three()
    async with Cluster(site) as cluster:
        vms = await asyncio.gather(*(cluster.fork("py") for _ in range(60)))
        assert len({vm.id for vm in vms}) == 60 == len(site.list_machines())
        counts = Counter(vm.node for vm in vms)
        assert all(abs(count - 20) <= 4 for count in counts.values()), counts
        await asyncio.gather(*(vm.aclose() for vm in vms))
    assert site.list_machines() == []


async def test_the_same_key_is_the_same_machine_and_a_new_one_when_that_is_gone() -> None:
    async with Cluster(three()) as cluster:
        one, other = await asyncio.gather(cluster.fork("py", key="k"), cluster.fork("py", key="k"))
        assert one.id == other.id
        await one.aclose()
        assert (await cluster.fork("py", key="k")).id != one.id


async def test_a_directory_that_was_restarted_finds_the_machine_of_a_key() -> None:
    site = three()
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", key="k")
        site.forget_directory()
        assert (await cluster.fork("py", key="k")).id == vm.id
        assert len(site.list_machines()) == 1


async def test_two_that_were_made_for_one_key_become_one() -> None:
    """As when the directory was restarted between two callers, before either's node had heard of it."""
    site = three()
    first = Machine(id="a-1", node="a", template="py", key="k")
    second = Machine(id="b-1", node="b", template="py", key="k")
    site.nodes["a"].machines["a-1"] = first
    site.nodes["b"].machines["b-1"] = second
    cluster = Cluster(site)
    known = [await cluster._settle(first), await cluster._settle(second)]
    assert known[0] == known[1]
    assert site.list_machines() == [known[0]]


async def test_a_node_that_ends_while_it_makes_one_is_replaced() -> None:
    site = three()
    for node in site.nodes.values():
        node.dies_after_making = node.name != "c"
    async with Cluster(site) as cluster:
        assert {(await cluster.fork("py")).node for _ in range(6)} == {"c"}


async def test_a_node_that_ends_after_a_long_wait_is_replaced_and_one_that_never_comes_back_is_given_up(
    monkeypatch,
) -> None:
    """What was waited for before the first loss is not counted."""
    now = 0.0
    monkeypatch.setattr(cluster_module, "_AGAIN_S", 0.0)
    monkeypatch.setattr(cluster_module, "time", SimpleNamespace(monotonic=lambda: now))

    class Dies(FakeNode):
        def __init__(self, name: str, *, after_s: float, stays: bool) -> None:
            super().__init__(name)
            self.after_s, self.stays = after_s, stays

        async def fork(self, order) -> Machine:
            nonlocal now
            now += self.after_s
            self.is_lost = not self.stays
            raise NodeLost(self.name)

    site = FakeSite(*(Dies(name, after_s=100.0, stays=False) for name in "ab"), FakeNode("c"))
    async with Cluster(site) as cluster:
        for _ in range(3):
            now = 0.0
            assert (await cluster.fork("py", spread="node")).node == "c"
        assert now == 0.0  # the others are gone by then
        assert site.nodes["a"].is_lost
        assert site.nodes["b"].is_lost
    async with Cluster(FakeSite(Dies("a", after_s=7.0, stays=True))) as cluster:
        with pytest.raises(NodeLost):
            await cluster.fork("py")
    assert 60.0 <= now <= 80.0


async def test_the_machine_of_a_key_is_made_anew_at_once_where_its_node_is_cut_off(monkeypatch) -> None:
    """It may run on there, and counts no more, also when its node is back."""
    monkeypatch.setattr(cluster_module, "_LOST_LIMIT_S", 0.5)
    site = three()
    async with Cluster(site) as cluster:
        lost = await cluster.fork("py", key="k")
        await cluster.status()  # its node has told of it
        site.nodes[lost.node].is_cut = True
        again = await cluster.fork("py", key="k")
        assert again.node != lost.node
        for is_cut in (True, False):
            site.nodes[lost.node].is_cut = is_cut
            assert (await cluster.fork("py", key="k")).id == again.id
        site.nodes[lost.node].is_cut = True
        assert (await cluster.find("k")).id == again.id
        with pytest.raises(NodeLost) as told:
            await lost.exec(["true"])
        assert told.value.is_cut
        for node in site.nodes.values():
            node.is_cut = True
        with pytest.raises(NodeLost):
            await cluster.fork("py", key="k")


async def test_a_machine_of_a_lost_node_is_named_and_closing_it_is_no_error() -> None:
    site = three()
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py")
        site.nodes[vm.node].is_lost = True
        with pytest.raises(NodeLost) as lost:
            await vm.exec(["true"])
        assert (lost.value.node, lost.value.machines) == (vm.node, (vm.id,))
        with pytest.raises(NodeLost):
            [event async for event in vm.stream(["true"])]
        await vm.aclose()
        assert (await cluster.status())["lost"] == {vm.node: []}  # it had not told of its machine yet


async def test_what_a_lost_node_had_told_of_is_in_the_status() -> None:
    site = three()
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py")
        await cluster.status()
        site.nodes[vm.node].is_lost = True
        told = await cluster.status()
        assert told["lost"] == {vm.node: [vm.id]}
        assert vm.node not in {node["name"] for node in told["nodes"]}


async def test_a_node_that_the_template_does_not_fit_after_all_is_passed_over() -> None:
    site = three()
    site.nodes["a"].is_unfit = site.nodes["b"].is_unfit = True
    async with Cluster(site) as cluster:
        assert (await cluster.fork("py")).node == "c"
        site.nodes["c"].is_unfit = True
        with pytest.raises(TemplateUnfit):
            await cluster.fork("py")


async def test_an_unknown_template_is_named() -> None:
    async with Cluster(three()) as cluster:
        with pytest.raises(TemplateNotFound, match="nothing"):
            await cluster.fork("nothing")


async def test_a_template_that_was_just_built_is_found() -> None:
    site = three(holds=False)
    async with Cluster(site) as cluster:
        with pytest.raises(TemplateNotFound):
            await cluster.fork("py")
        site.nodes["b"].held = (HELD,)
        assert (await cluster.fork("py")).node == "b"


async def test_it_is_brought_to_a_node_without_it() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b", holds=False))
    async with Cluster(site) as cluster:
        assert (await cluster.fork("py", node="b")).node == "b"
        assert site.nodes["b"].held


async def test_constraints_that_nobody_meets_are_told_at_once() -> None:
    async with Cluster(three(labels={"zone": "west"})) as cluster:
        with pytest.raises(NoNode, match="no label zone=east") as refused:
            await cluster.fork("py", label="zone=east")
        assert refused.value.hint == "nodes have zone=west"
        with pytest.raises(NoNode, match="no node is named"):
            await cluster.fork("py", node="z")
        with pytest.raises(ConfigError):
            await cluster.fork("py", env={"A=B": "c"})
        for wrong in ({"disk": "2 sheep"}, {"disk": 1}, {"allow_guest_fork": -1}):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                await cluster.fork("py", **wrong)
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                await cluster.fork_many("py", 2, **wrong)


async def test_more_than_the_cluster_could_hold_is_told_at_once() -> None:
    site = three(total_mib=300)
    async with Cluster(site) as cluster:
        with pytest.raises(NoNode, match="hold 9 at most"):
            await cluster.fork_many("py", 10)
        assert sum(node.made for node in site.nodes.values()) == 0


async def test_what_nobody_can_have_is_told_of_many_as_of_one_with_what_would_do() -> None:
    site = three(labels={"zone": "west"})
    async with Cluster(site) as cluster:
        for constraints in ({"label": "zone=east"}, {"spread": "rack"}):
            told = []
            for asked in (cluster.fork("py", **constraints), cluster.fork_many("py", 2, **constraints)):
                with pytest.raises(NoNode) as refused:
                    await asked
                told.append((refused.value.reason, refused.value.reasons, refused.value.hint))
            assert told[0] == told[1]
            assert "zone" in told[0][2]
    assert sum(node.made for node in site.nodes.values()) == 0


async def test_what_many_are_given_reaches_their_node() -> None:
    site = FakeSite(FakeNode("a"))
    given = {"env": {"A": "b"}, "cpus": 2, "memory_mib": 300, "ttl_s": 5.0, "idle_ttl_s": 6.0, "network": "none"}
    async with Cluster(site) as cluster:
        await cluster.fork_many("py", 2, card="restricted", **given)
        orders = site.nodes["a"].orders
        assert len(orders) == 2
        for order in orders:
            assert {name: order.options[name] for name in given} == given
            assert order.options["card"] == "restricted"
        with pytest.raises(ConfigError):
            await cluster.fork_many("py", 2, memory_mib=-1)


async def test_one_that_fails_closes_all_and_partial_keeps_the_rest() -> None:
    site = three()
    site.nodes["a"].is_unfit = site.nodes["b"].is_unfit = site.nodes["c"].is_unfit = True
    async with Cluster(site) as cluster:
        with pytest.raises(TemplateUnfit):
            await cluster.fork_many("py", 4)
        found = await cluster.fork_many("py", 4, partial=True)
        assert [isinstance(each, VMForkError) for each in found] == [True] * 4
        site.nodes["c"].is_unfit = False
        assert {vm.node for vm in await cluster.fork_many("py", 4)} == {"c"}


async def test_a_cancelled_fork_leaves_nothing() -> None:
    site = three()
    for node in site.nodes.values():
        node.gate = asyncio.Event()
    cluster = Cluster(site)
    task = asyncio.ensure_future(cluster.fork("py", key="k"))
    while not site.directory._known.promises:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert site.directory._known.promises == {}
    assert site.list_machines() == []
    await cluster.aclose()


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_one_that_could_not_be_settled_is_left_nowhere(how) -> None:
    site = three()
    cluster = Cluster(site)
    settling = asyncio.Event()

    async def settle(_machine) -> Machine:
        settling.set()
        if how == "failed":
            raise ClusterError("the directory is away")
        await asyncio.Event().wait()

    site.directory.settle = settle
    task = asyncio.ensure_future(cluster.fork("py", key="k", lasts=True))
    await settling.wait()
    if how == "cancelled":
        task.cancel()
    with pytest.raises(ClusterError if how == "failed" else asyncio.CancelledError):
        await task
    assert site.list_machines() == []
    await cluster.aclose()


async def test_what_a_node_made_that_was_cut_off_ends_when_it_is_back(monkeypatch) -> None:
    """Another has made the machine meanwhile; nobody has a handle to the first."""
    monkeypatch.setattr(cluster_module, "_RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(cluster_module, "_AGAIN_S", 0.0)

    class Cut(FakeNode):
        async def fork(self, order) -> Machine:
            made = await super().fork(order)
            if made.lasts:
                self.is_cut = True
                raise NodeLost(self.name, is_cut=True)
            return made

    site = FakeSite(Cut("a"), FakeNode("b", holds=False))
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", lasts=True)
        assert vm.node == "b"
        assert {machine.node for machine in site.list_machines()} == {"a", "b"}
        site.nodes["a"].is_cut = False
        async with asyncio.timeout(10.0):
            while site.nodes["a"].machines:
                await asyncio.sleep(0)
        assert [machine.id for machine in site.list_machines()] == [vm.id]
        assert not cluster._owed


async def test_who_leaves_tells_a_node_first_that_is_back() -> None:
    class Cut(FakeNode):
        async def fork(self, order) -> Machine:
            await super().fork(order)
            self.is_cut = True
            raise NodeLost(self.name, is_cut=True)

    site = FakeSite(Cut("a"), FakeNode("b", holds=False))
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", lasts=True)
        site.nodes["a"].is_cut = False
    assert [machine.id for machine in site.list_machines()] == [vm.id]


async def test_who_leaves_while_it_asks_leaves_nothing() -> None:
    """On a list the call fails with the lines, and is made all the same on the node."""

    class Leaves(FakeSite):
        async def aclose(self) -> None:
            for node in self.nodes.values():
                node.gate.set()

    site = Leaves(FakeNode("a"))
    site.nodes["a"].gate = asyncio.Event()
    cluster = Cluster(site)
    asking = asyncio.ensure_future(cluster.fork("py", lasts=True))
    while not site.nodes["a"].orders:
        await asyncio.sleep(0)
    await cluster.aclose()
    assert len(site.nodes["a"].dropped) == 1
    with pytest.raises(Closed):
        await asking
    assert site.list_machines() == []


async def test_what_is_owed_to_a_node_keeps_it_from_hearing_of_us_no_round(monkeypatch) -> None:
    monkeypatch.setattr(cluster_module, "_RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(cluster_module, "_RENEW_LIMIT_S", 0.02)

    class Slow(FakeNode):
        async def drop(self, key: str, ticket: str) -> None:
            await asyncio.sleep(0.015)
            await super().drop(key, ticket)

    site = FakeSite(Slow("a"))
    async with Cluster(site) as cluster:
        await cluster.fork("py")
        cluster._owe(["a"], "other", "ticket")
        for number in range(20):
            cluster._owe(["a"], f"other-{number}", "ticket")
        async with asyncio.timeout(10.0):
            while len(site.nodes["a"].renewed) < 3:
                await asyncio.sleep(0.001)
        assert len(site.nodes["a"].dropped) < 10
        cluster._owed.clear()


async def test_many_that_are_given_up_at_once_are_each_told_once() -> None:
    site = three()
    for node in site.nodes.values():
        node.gate = asyncio.Event()
    async with Cluster(site) as cluster:
        forks = asyncio.gather(*(cluster.fork("py") for _ in range(20)))
        while sum(len(node.orders) for node in site.nodes.values()) < 20:
            await asyncio.sleep(0)
        forks.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forks
        while cluster._owed:
            await asyncio.sleep(0)
        assert sum(len(node.dropped) for node in site.nodes.values()) == 20


async def test_room_is_waited_for_on_one_node() -> None:
    """It may be brought to others, and each would take the time again."""
    site = FakeSite(FakeNode("a", total_mib=100), FakeNode("b", holds=False), FakeNode("c", holds=False))
    async with Cluster(site) as cluster:
        await cluster.fork("py", node="a")
        for node in site.nodes.values():
            node.fork_fails = NoRoom("memory", "others were quicker")
        with pytest.raises(NoRoom):
            await cluster.fork("py")
        assert len(site.nodes["b"].orders) + len(site.nodes["c"].orders) == 1


async def test_the_machine_that_counts_is_given_though_the_other_cannot_be_closed() -> None:
    site = three()
    counts = Machine(id="b-9", node="b", template="py", key="k", lasts=True)

    async def settle(machine) -> Machine:
        site.nodes[machine.node].is_cut = True
        return counts

    site.directory.settle = settle
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", key="k", node="a", lasts=True)
        assert vm.id == "b-9"
        assert [node for node, _, _ in cluster._owed] == ["a"]


async def test_a_machine_that_lasts_is_not_told_as_closed_where_its_node_cannot_be_asked() -> None:
    site = three()
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", lasts=True)
        site.nodes[vm.node].is_cut = True
        with pytest.raises(NodeLost):
            await vm.aclose()
        site.nodes[vm.node].is_cut = False
        await vm.aclose()
        assert site.list_machines() == []


async def test_a_node_that_takes_its_time_keeps_no_other_from_hearing_of_us(monkeypatch) -> None:
    monkeypatch.setattr(cluster_module, "_RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(cluster_module, "_RENEW_LIMIT_S", 0.01)

    class Slow(FakeNode):
        async def renew(self, client: str) -> None:
            await asyncio.Event().wait()

    site = FakeSite(Slow("a"), FakeNode("b"))
    async with Cluster(site) as cluster:
        await asyncio.gather(*(cluster.fork("py", node=name) for name in "ab"))
        async with asyncio.timeout(10.0):
            while len(site.nodes["b"].renewed) < 3:
                await asyncio.sleep(0.001)


async def test_a_node_that_was_cut_off_for_seconds_hears_of_us_again(monkeypatch) -> None:
    monkeypatch.setattr(cluster_module, "_RENEW_EVERY_S", 0.0)
    site = FakeSite(FakeNode("a"))
    async with Cluster(site) as cluster:
        await cluster.fork("py")
        site.nodes["a"].is_cut = True
        for _ in range(20):
            await asyncio.sleep(0)
        site.nodes["a"].is_cut, site.nodes["a"].renewed = False, []
        async with asyncio.timeout(10.0):
            while not site.nodes["a"].renewed:
                await asyncio.sleep(0)
        monkeypatch.setattr(cluster_module, "_LOST_LIMIT_S", 0.0)
        site.nodes["a"].is_lost = True
        async with asyncio.timeout(10.0):
            while cluster._nodes:
                await asyncio.sleep(0)


@pytest.mark.parametrize("error", [HostError("over its budget"), ArtifactError("node a", "a layer is missing")])
async def test_where_it_cannot_be_brought_another_node_makes_the_machine(error) -> None:
    """What keeps it from one is no reason for all; what fails a fork where it is, is told as it was."""
    site = FakeSite(FakeNode("a", total_mib=100), FakeNode("b", holds=False), FakeNode("c", holds=False))
    site.nodes["b"].fails = error
    async with Cluster(site) as cluster:
        await cluster.fork("py", node="a")
        assert {(await cluster.fork("py")).node for _ in range(4)} == {"c"}
        with pytest.raises(type(error)):
            await cluster.fork("py", node="b")
        site.nodes["c"].held = ()
        assert await cluster.prefetch("py") == ["c"]
        site.nodes["c"].held = ()
        with pytest.raises(type(error)):
            await cluster.prefetch("py", nodes=["b", "c"])
        assert site.nodes["c"].held


@pytest.mark.parametrize("asked", [{"node": "b"}, {"label": "zone=east"}, {}])
async def test_the_key_of_a_machine_that_was_closed_leads_nowhere(asked) -> None:
    """Neither against what is asked for now, nor to where there is no room any more."""
    site = FakeSite(FakeNode("a", total_mib=100, labels={"zone": "west"}), FakeNode("b", labels={"zone": "east"}))
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", key="k", node="a")
        await vm.aclose()
        if not asked:
            await cluster.fork("py", node="a")  # is full
        assert (await cluster.fork("py", key="k", **asked)).node == "b"


async def test_prefetch_brings_it_to_all_that_it_fits() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b", holds=False), FakeNode("c", holds=False))
    site.nodes["c"].is_unfit = True
    async with Cluster(site) as cluster:
        assert await cluster.prefetch("py") == ["b"]
        known = site.directory._known
        assert {*known.list_holders(known.find_held("py").wanted.digest)} == {"a", "b"}
        with pytest.raises(TemplateUnfit):
            await cluster.prefetch("py", nodes=["c"])
        with pytest.raises(NoNode):
            await cluster.prefetch("py", nodes=["z"])


async def test_a_drained_node_gets_nothing_and_its_template_is_saved() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b", holds=False))
    async with Cluster(site) as cluster:
        await cluster.drain("a", timeout_s=5.0)
        assert site.nodes["b"].held
        assert {(await cluster.fork("py")).node for _ in range(4)} == {"b"}
        states = {node["name"]: node["state"] for node in (await cluster.status())["nodes"]}
        assert states == {"a": "draining", "b": "ready"}
        await cluster.undrain("a")
        assert (await cluster.fork("py", node="a")).node == "a"


async def test_of_two_that_are_drained_neither_counts_for_the_other() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b"), FakeNode("c", holds=False))
    async with Cluster(site) as cluster:
        await cluster.drain("a", timeout_s=5.0)
        assert not site.nodes["c"].held
        await cluster.drain("b", timeout_s=5.0)
        assert site.nodes["c"].held


async def test_what_is_being_made_is_waited_for_and_what_came_meanwhile_is_moved() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b", holds=False))
    site.nodes["a"].asked = ["k"]
    async with Cluster(site) as cluster:
        with pytest.raises(DeadlineExceeded):
            await cluster.drain("a", timeout_s=0.3)
        assert site.nodes["b"].held
        draining = asyncio.ensure_future(cluster.drain("a", timeout_s=30.0))
        await asyncio.sleep(0.3)
        assert not draining.done()
        site.nodes["b"].held, site.nodes["a"].asked = (), []
        await draining
        assert site.nodes["b"].held


async def test_a_template_that_nobody_else_takes_is_told_once_the_node_is_drained() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b", holds=False), FakeNode("c", holds=False))
    site.nodes["b"].is_unfit, site.nodes["c"].version = True, "0.0.9"
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", node="a")
        draining = asyncio.ensure_future(cluster.drain("a", timeout_s=30.0))
        while not site.nodes["a"].is_draining:
            await asyncio.sleep(0)
        await vm.aclose()
        with pytest.raises(ClusterError, match="alone has py") as told:
            await draining
        assert told.value.hint
        assert not site.nodes["c"].held  # of another vmfork
        site.nodes["b"].is_unfit = False
        await cluster.drain("a", timeout_s=30.0)
        assert site.nodes["b"].held


async def test_a_template_travels_as_whoever_packed_it_says_whatever_the_order_of_names() -> None:
    """The others know its memory alone."""
    memory = replace(HELD, wanted=replace(WANTED, layers={"d": 5000}))
    packed = replace(HELD, wanted=replace(WANTED, layers={"x": 700, "y": 300}))
    for number in range(3):
        site = three()
        for at, node in enumerate(site.nodes.values()):
            node.held = (packed if at == number else memory,)
        async with Cluster(site) as cluster:
            (told,) = (await cluster.status())["templates"]
            assert (told["size_bytes"], told["nodes"]) == (1000, ["a", "b", "c"])


async def test_a_program_that_found_a_machine_is_heard_of_by_its_node(monkeypatch) -> None:
    """Forks of it belong to this program, whoever made it."""
    monkeypatch.setattr(cluster_module, "_RENEW_EVERY_S", 0.0)
    site = FakeSite(FakeNode("a"), FakeNode("b", holds=False))
    site.nodes["a"].machines["1"] = Machine(id="1", node="a", template="py", key="k", lasts=True)
    async with Cluster(site) as cluster:
        await cluster.find("k")
        while not site.nodes["a"].renewed:
            await asyncio.sleep(0)
        assert {*site.nodes["a"].renewed} == {"program"}
        assert not site.nodes["b"].renewed


async def test_status_and_find() -> None:
    site = three()
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", key="k")
        told = await cluster.status()
        assert told["machines"][0]["id"] == vm.id
        assert told["templates"] == [
            {"name": "py", "digest": "d", "created_at": HELD.created_at, "size_bytes": 1000, "nodes": ["a", "b", "c"]}
        ]
        assert (await cluster.find("k")).id == (await cluster.find(vm.id)).id == vm.id
        with pytest.raises(VMNotFound):
            await cluster.find("nothing")


async def test_a_result_is_checked_where_it_is_asked_for() -> None:
    async with Cluster(three()) as cluster:
        vm = await cluster.fork("py")
        assert (await vm.exec(["false"])).exit_code == 3
        with pytest.raises(ExecError):
            await vm.exec(["false"], check=True)


def test_a_handle_can_be_passed_on() -> None:
    vm = ClusterVM(Machine(id="1", node="a", template="py", key="k"))
    copy = pickle.loads(pickle.dumps(vm))
    assert (copy.id, copy.node, copy.template, copy.key) == ("1", "a", "py", "k")


async def test_what_was_promised_counts_until_its_node_tells_of_it() -> None:
    site = FakeSite(FakeNode("a", total_mib=250))
    ask = [Ask(template="py", key=str(number)) for number in range(3)]
    placed = [await site.directory.place(each) for each in ask]
    assert [each.waits for each in placed] == [False, False, True]


async def test_of_two_templates_of_one_name_the_later_counts() -> None:
    later = type(HELD)(name="py", created_at="2026-02-02", wanted=type(WANTED)(digest="e", share_mib=100))
    site = FakeSite(FakeNode("a"), FakeNode("b"))
    site.nodes["b"].held = (later,)
    assert (await site.directory.place(Ask(template="py", key="k"))).node == "b"


async def test_six_that_are_spread_are_two_on_each_though_their_nodes_have_not_told_of_them() -> None:
    async with Cluster(three()) as cluster:
        vms = await cluster.fork_many("py", 6, spread="node")
        assert set(Counter(vm.node for vm in vms).values()) == {2}


async def test_a_node_that_does_not_answer_is_left_alone_until_it_does() -> None:
    site = three()
    async with Cluster(site) as cluster:
        await cluster.status()
        site.nodes["a"].is_silent = True
        told = await cluster.status()
        assert {node["name"]: node["state"] for node in told["nodes"]} == {
            "a": "it does not answer", "b": "ready", "c": "ready",
        }  # fmt: skip
        assert "a" not in {(await cluster.fork("py")).node for _ in range(8)}
        asked = asyncio.ensure_future(cluster.fork("py", node="a"))
        done, _ = await asyncio.wait({asked}, timeout=0.1)
        assert not done
        site.nodes["a"].is_silent = False
        assert (await asked).node == "a"


async def test_a_node_of_another_vmfork_is_refused_by_name() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b"))
    site.nodes["a"].version = "0.0.9"
    async with Cluster(site) as cluster:
        assert {(await cluster.fork("py")).node for _ in range(4)} == {"b"}
        with pytest.raises(NoNode, match=r"it runs vmfork 0\.0\.9, and the directory 1"):
            await cluster.fork("py", node="a")


async def test_what_ended_is_known_before_its_node_tells() -> None:
    """Else a burst behind another is spread by machines that are no more."""
    site = three()
    async with Cluster(site) as cluster:
        vms = await cluster.fork_many("py", 9)
        await site.directory.look()
        known = site.directory._known
        assert sum(known.count_beside("py").values()) == 9
        await asyncio.gather(*(vm.aclose() for vm in vms))
        assert not known.count_beside("py")
        assert {each.running for each in known.offers.values()} == {0}
        assert {each.to_give_mib for each in known.offers.values()} == {10_000}


async def test_a_machine_is_closed_though_the_directory_is_away(monkeypatch) -> None:
    monkeypatch.setattr(vm_module, "_NOTE_LIMIT_S", 0.01)
    site = three()
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py")

        async def ask(verb: str, *args: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(site, "ask", ask)
        await vm.aclose()
    assert site.list_machines() == []


async def test_a_node_that_lets_us_wait_is_no_reason_to_know_less_of_others(monkeypatch) -> None:
    monkeypatch.setattr(directory_module, "_LOOK_LIMIT_S", 0.05)
    site, answers = three(), asyncio.Event()
    report = site.nodes["a"].report

    async def late():
        await answers.wait()
        return await report()

    monkeypatch.setattr(site.nodes["a"], "report", late)
    directory = site.directory
    for _ in range(2):
        site.nodes["b"].total_mib += 1
        await directory.look()
        assert directory._known.offers["b"].total_mib == site.nodes["b"].total_mib
    placed = [await directory.place(Ask(template="py", key=f"k{number}")) for number in range(6)]
    assert "a" not in {each.node for each in placed}
    with pytest.raises(NoNode) as told:
        await directory.place(Ask(template="py", key="there", constraints=Constraints(node="a")))
    assert "a" in str(told.value)
    answers.set()
    while (found := directory._known.offers.get("a")) is None or found.hindrance:
        await asyncio.sleep(0)  # what it says is heard when it comes, without another look
    assert (await directory.place(Ask(template="py", key="there", constraints=Constraints(node="a")))).node == "a"


async def test_a_directory_that_is_closed_leaves_no_call_behind(monkeypatch) -> None:
    monkeypatch.setattr(directory_module, "_LOOK_LIMIT_S", 0.01)
    site = three()
    begun = asyncio.all_tasks()

    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(site.nodes["a"], "report", never)
    await site.directory.look()
    assert asyncio.all_tasks() > begun
    await site.directory.aclose()
    assert asyncio.all_tasks() == begun
