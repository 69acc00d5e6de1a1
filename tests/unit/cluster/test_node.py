"""What a node keeps for programs, without an engine and without machines."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests.unit.store.samples import build_small
from vmfork.admission.rule import Promised, Readings
from vmfork.cluster import node
from vmfork.cluster.node import Node
from vmfork.cluster.terms import Machine, Order
from vmfork.config import Places
from vmfork.errors import ClusterError, HostError, NodeLost, NoRoom, VMNotFound
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from pathlib import Path


def list_spools() -> list[str]:
    """What was spooled, as descriptors of this process; others of the run have their own."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return [path for link in links if os.path.lexists(link) and "vmfork-cluster-" in (path := os.readlink(link))]


async def open_node(folder: Path) -> Node:
    return await Node.open("one", {}, labels={}, places=Places(home=folder / "home", runtime=folder / "run"))


async def test_what_was_spooled_goes_with_the_put_that_takes_it(tmp_path) -> None:
    async with await open_node(tmp_path) as one:
        await one.spool("token", b"a", 0)
        await one.spool("token", b"b", 1)
        assert len(list_spools()) == 1
        with pytest.raises(VMNotFound):
            await one.put("gone", "token", 2, "/", {})
        assert not list_spools()


async def test_what_nobody_sends_the_rest_of_is_dropped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    async with await open_node(tmp_path) as one:
        await one.spool("kept", b"a", 0)
        monkeypatch.setattr(node, "_SPOOL_S", 0.0)
        await one.spool("left", b"a", 0)
        while len(list_spools()) > 1:
            await asyncio.sleep(0.01)
        await one.spool("kept", b"b", 1)
    assert not list_spools()


async def test_what_was_dropped_cannot_be_put(tmp_path) -> None:
    async with await open_node(tmp_path) as one:
        with pytest.raises(ClusterError, match="has not all of what was sent"):
            await one.put("vm", "token", 0, "/", {})


async def test_what_lost_its_beginning_is_not_taken_for_a_whole(tmp_path, monkeypatch) -> None:
    """A tar without its first members is a tar."""
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(node, "_SPOOL_S", 0.0)
    async with await open_node(tmp_path) as one:
        await one.spool("token", b"abc", 0)
        while list_spools():
            await asyncio.sleep(0.01)
        with pytest.raises(ClusterError, match="has not all of what was sent"):
            await one.spool("token", b"def", 3)
        monkeypatch.setattr(node, "_SPOOL_S", 60.0)
        await one.spool("token", b"abc", 0)
        with pytest.raises(ClusterError, match="has not all of what was sent"):
            await one.put("vm", "token", 6, "/", {})
        assert not list_spools()


@pytest.mark.parametrize(("knows", "found"), [(False, ["1"]), (True, ["1", "3"])])
async def test_machines_that_last_are_found_again_and_those_of_a_node_that_is_gone(
    tmp_path, monkeypatch, knows, found
) -> None:
    """Ray gives a host another name whenever it begins there; a server of a list does not know who lives."""
    records = [
        SimpleNamespace(
            id=vm_id, template="py", created_at="", labels={"vmfork-cluster": of, "vmfork-cluster-key": vm_id}
        )
        for vm_id, of in (("1", "one"), ("2", "two"), ("3", "gone"))
    ]

    async def list_all(**_: object) -> list[SimpleNamespace]:
        return records

    async def list_living() -> list[str]:
        return living

    living = ["one", "two"]
    monkeypatch.setattr(node.VM, "list", list_all)
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
    async with await Node.open("one", {}, labels={}, places=places, living=list_living if knows else None) as one:

        def list_found() -> list[tuple[str, str, bool]]:
            return [(machine.id, machine.node, machine.lasts) for machine in one._machines.values()]

        assert list_found() == [(vm_id, "one", True) for vm_id in found]
        living.remove("two")  # that it has ended is known now
        while knows and len(list_found()) < 3:
            await asyncio.sleep(0.01)
        assert len(list_found()) == (3 if knows else 1)


async def test_a_program_that_has_no_machine_is_forgotten(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    async with await open_node(tmp_path) as one:
        await one.renew("lives")
        monkeypatch.setattr(node, "LEASE_S", 0.0)
        await one.renew("ended")
        while "ended" in one._leases:
            await asyncio.sleep(0.01)
        assert "lives" in one._leases


def order_of(ticket: str) -> Order:
    return Order(template="py", digest="d", key="k", client="program", ticket=ticket)


@pytest.mark.parametrize("is_made", [False, True], ids=["while it is made", "once it is there"])
async def test_who_gives_up_takes_no_machine_from_another_who_asked_by_the_same_key(
    tmp_path, monkeypatch, is_made
) -> None:
    made, closed = asyncio.Event(), []

    async def make(self, order) -> Machine:
        await made.wait()
        self._machines["1"] = machine = Machine(id="1", node=self.name, template=order.template, key=order.key)
        return machine

    async def close(self, vm_id) -> None:
        closed.append(vm_id)

    monkeypatch.setattr(Node, "_make", make)
    async with await open_node(tmp_path) as one:
        asked = [asyncio.ensure_future(one.fork(order_of(ticket))) for ticket in ("first", "second")]
        await asyncio.sleep(0)
        if is_made:
            made.set()
            await asyncio.gather(*asked)
        monkeypatch.setattr(Node, "close", close)
        await one.drop("k", "second")
        assert closed == []
        made.set()
        assert (await asked[0]).id == "1"
        await one.drop("k", "first")
        assert closed == ["1"]


async def test_what_has_ended_is_told_for_some_time(tmp_path, monkeypatch) -> None:
    async with await open_node(tmp_path) as one:
        one._machines["1"] = Machine(id="1", node="one", template="py", key="k")
        await one.close("1")
        assert one._list_ended() == ("k",)
        monkeypatch.setattr(node, "_ENDED_S", 0.0)
        assert one._list_ended() == ()


async def test_a_machine_that_nobody_waits_for_is_not_made(tmp_path, monkeypatch) -> None:
    begun = asyncio.Event()

    async def make(self, order) -> Machine:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Node, "_make", make)
    async with await open_node(tmp_path) as one:
        asked = asyncio.ensure_future(one.fork(order_of("only")))
        await begun.wait()
        await one.drop("k", "only")
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert not one._asked
        assert not one._tickets


async def test_who_asks_as_another_gives_up_has_one_made_anew(tmp_path, monkeypatch) -> None:
    """What was begun for the first takes some time to end; the second comes meanwhile, and so does who settles."""
    begun, ends = [], asyncio.Event()

    async def make(self, order) -> Machine:
        begun.append(order.ticket)
        if order.ticket == "second":
            return self._machines.setdefault("2", Machine(id="2", node=self.name, template="py", key=order.key))
        try:
            await asyncio.Event().wait()
        finally:
            await ends.wait()

    monkeypatch.setattr(Node, "_make", make)
    async with await open_node(tmp_path) as one:
        first = asyncio.ensure_future(one.fork(order_of("first")))
        while not begun:
            await asyncio.sleep(0)
        dropping = asyncio.ensure_future(one.drop("k", "first"))
        await asyncio.sleep(0)
        second, settling = (asyncio.ensure_future(each) for each in (one.fork(order_of("second")), one.find_key("k")))
        await asyncio.sleep(0)
        ends.set()
        assert (await second).id == "2"
        found = await settling
        assert found is None or found.id == "2"
        await dropping
        with pytest.raises(asyncio.CancelledError):
            await first
        assert one._tickets["k"] == {"second"}
        assert [*one._machines] == ["2"]
        one._machines.clear()


async def test_who_asks_in_the_moment_in_which_it_was_given_up_has_one_made_anew(tmp_path, monkeypatch) -> None:
    """What was given up has ended, and is not forgotten yet."""

    async def make(self, order) -> Machine:
        if order.ticket == "second":
            return self._machines.setdefault("2", Machine(id="2", node=self.name, template="py", key=order.key))
        return await asyncio.Event().wait()

    monkeypatch.setattr(Node, "_make", make)
    async with await open_node(tmp_path) as one:
        first = asyncio.ensure_future(one.fork(order_of("first")))
        while "k" not in one._asked:
            await asyncio.sleep(0)
        task = one._asked["k"]

        async def second() -> Machine:
            while not task.done():
                await asyncio.sleep(0)
            assert one._asked.get("k") is task
            return await one.fork(order_of("second"))

        asking = asyncio.ensure_future(second())
        await asyncio.sleep(0)
        await one.drop("k", "first")
        assert (await asking).id == "2"
        with pytest.raises(asyncio.CancelledError):
            await first
        one._machines.clear()


async def test_who_asks_by_the_key_of_a_machine_that_is_being_closed_keeps_the_next(tmp_path, monkeypatch) -> None:
    closing, goes_on = asyncio.Event(), asyncio.Event()

    class Stopping:
        async def stop(self, *, grace_s: float) -> None:
            closing.set()
            await goes_on.wait()

        async def aclose(self) -> None:
            pass

    async def make(self, order) -> Machine:
        return self._machines.setdefault("2", Machine(id="2", node=self.name, template="py", key=order.key))

    monkeypatch.setattr(Node, "_make", make)
    async with await open_node(tmp_path) as one:
        one._machines["1"] = Machine(id="1", node="one", template="py", key="k", lasts=True)
        one._vms["1"], one._tickets["k"] = Stopping(), {"first"}
        ending = asyncio.ensure_future(one.close("1"))
        await closing.wait()
        assert (await one.fork(order_of("second"))).id == "2"
        goes_on.set()
        await ending
        assert (await one.fork(order_of("third"))).id == "2"
        await one.drop("k", "third")
        assert [*one._machines] == ["2"]
        one._machines.clear()


async def test_what_lasts_and_is_nobodys_ends_though_its_process_began_anew(tmp_path, monkeypatch) -> None:
    """One that was asked for without a key. By a key others may have asked, which the process that ended alone knew."""
    closed = []

    async def list_all(**_: object) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(
                id=key, template="py", created_at="", labels={"vmfork-cluster": "one", "vmfork-cluster-key": key}
            )
            for key in ("given-up", "k")
        ]

    async def close(self, vm_id) -> None:
        closed.append(vm_id)

    monkeypatch.setattr(node.VM, "list", list_all)
    monkeypatch.setattr(Node, "close", close)
    async with await open_node(tmp_path) as one:
        await one.drop("k", "given-up")
        assert closed == []
        await one.drop("given-up", "given-up")
        assert closed == ["given-up"]


async def test_what_a_host_keeps_on_disk_counts_before_what_others_have(tmp_path, monkeypatch) -> None:
    """After a reboot it comes back when it is asked for, if it has not yet."""
    async with await open_node(tmp_path) as one:
        store = TemplateStore(one._instance.places.templates)

        async def open_template(name, **_: object) -> None:
            if not store.list_names():
                await build_small(store, name)

        async def pull(self, name, digest, sources) -> None:
            raise AssertionError

        monkeypatch.setattr(node.Template, "open", open_template)
        monkeypatch.setattr(Node, "_pull", pull)
        kept = one._instance.places.persisted / "py.tar"
        kept.parent.mkdir(parents=True)
        kept.touch()
        await one._open(replace(order_of("t"), digest="other", created_at="2020-01-01", sources=("two",)))
        await store.remove("py")
        held = await one._find_kept("py")
        await one.pull("py", held.wanted.digest, ["two"])
        await store.remove("py")


async def test_what_comes_back_too_slowly_is_brought_from_others(tmp_path, monkeypatch) -> None:
    """It comes back once for all who ask, and is waited for once."""
    opened, brought = [], []
    monkeypatch.setattr(node, "_REVIVAL_LIMIT_S", 0.05)
    monkeypatch.setattr(node, "_REVIVAL_LOOK_S", 0.01)

    async def open_template(name, **_: object) -> None:
        opened.append(name)
        if not brought:
            await asyncio.Event().wait()

    async def pull(self, name, digest, sources) -> None:
        brought.append(name)
        await asyncio.sleep(0.5)

    async with await open_node(tmp_path) as one:
        monkeypatch.setattr(node.Template, "open", open_template)
        monkeypatch.setattr(Node, "_pull", pull)
        kept = one._instance.places.persisted / "py.tar"
        kept.parent.mkdir(parents=True)
        kept.touch()
        order = replace(order_of("t"), digest="other", sources=("two",))
        await asyncio.wait_for(asyncio.gather(*(one._open(order) for _ in range(3))), 30)
        assert brought == ["py"]
        assert len(opened) == 1 + 3  # one waits; each opens what was brought
        assert [*one._reviving] == ["py"]
    assert not one._reviving


async def test_a_machine_that_was_just_given_is_not_ended_with_those_of_a_program_that_ended(
    tmp_path, monkeypatch
) -> None:
    closed, goes_on = [], asyncio.Event()

    async def close(self, vm_id) -> None:
        closed.append(vm_id)
        self._clients.pop(vm_id, None)
        await goes_on.wait()

    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(Node, "close", close)
    async with await open_node(tmp_path) as one:
        for vm_id in "12":
            one._machines[vm_id] = Machine(id=vm_id, node="one", template="py", key=f"k{vm_id}")
            one._clients[vm_id] = {"ended"}
        while not closed:
            await asyncio.sleep(0.01)
        assert (await one.fork(replace(order_of("t"), key="k2"))).id == "2"
        goes_on.set()
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert closed == ["1"]


async def test_a_machine_that_is_being_closed_is_not_found_again(tmp_path, monkeypatch) -> None:
    found = [
        SimpleNamespace(
            id="1", template="py", created_at="", labels={"vmfork-cluster": "one", "vmfork-cluster-key": "k"}
        )
    ]
    seen = []

    async def list_all(**_: object) -> list[SimpleNamespace]:
        return found

    class Stopping:
        async def stop(self, *, grace_s: float) -> None:
            await one._find_again()
            seen.append([*one._machines])
            found.clear()

        async def aclose(self) -> None:
            pass

    monkeypatch.setattr(node.VM, "list", list_all)
    async with await open_node(tmp_path) as one:
        one._vms["1"] = Stopping()
        await one.close("1")
        assert seen == [[]]
        assert not one._closing


async def test_who_is_cancelled_while_it_waits_is_cancelled(tmp_path, monkeypatch) -> None:
    async def make(self, order) -> Machine:
        await asyncio.Event().wait()

    monkeypatch.setattr(Node, "_make", make)
    async with await open_node(tmp_path) as one:
        asked = asyncio.ensure_future(one.fork(order_of("only")))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert one._asked  # until it is dropped
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one.find_key("k"), 0.01)
    with pytest.raises(NodeLost):
        await one.fork(order_of("late"))


async def test_a_template_that_was_built_anew_here_counts_more_than_what_was_asked_for(tmp_path, monkeypatch) -> None:
    """Whoever asked had heard of the former one; another node still has that."""
    pulled, opened = [], []

    async def bring(self, name, digest, sources) -> None:
        pulled.append(digest)

    async def open_template(name, **_: object) -> str:
        opened.append(name)
        return name

    async with await open_node(tmp_path) as one:
        store = TemplateStore(one._instance.places.templates)
        await build_small(store, "py")
        held = one._find_held("py")
        monkeypatch.setattr(Node, "_bring", bring)
        monkeypatch.setattr(node.Template, "open", open_template)
        former = replace(order_of("t"), digest="other", created_at="2020-01-01", sources=("two",))
        await one._open(former)
        assert (pulled, opened) == ([], ["py"])
        await one._open(replace(former, sources=()))  # nor is it missing, where no other has the former
        later = replace(former, created_at="2999-01-01")
        await one._open(later)
        assert pulled == ["other"]
        await one._open(replace(former, digest=held.wanted.digest))
        assert pulled == ["other"]
        await store.remove("py")


async def test_a_round_that_fails_in_part_does_the_rest_and_comes_again(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    rounds = []

    async def follow(self) -> None:
        rounds.append(len(rounds))
        raise OSError("too many open files")

    monkeypatch.setattr(Node, "_follow", follow)
    async with await open_node(tmp_path) as one:
        monkeypatch.setattr(node, "LEASE_S", 0.0)
        await one.renew("ended")
        while len(rounds) < 3 or "ended" in one._leases:
            await asyncio.sleep(0.01)
    assert "too many open files" in caplog.text


async def test_a_machine_that_lasts_and_cannot_be_stopped_is_still_ours(tmp_path, monkeypatch) -> None:
    async def connect(vm_id, **_: object) -> object:
        raise HostError("no descriptor is left")

    monkeypatch.setattr(node.VM, "connect", connect)
    async with await open_node(tmp_path) as one:
        one._machines["1"] = Machine(id="1", node="one", template="py", key="k", lasts=True)
        with pytest.raises(HostError):
            await one.close("1")
        assert (await one.find_key("k")).id == "1"
        assert one._list_ended() == ()


async def test_a_node_that_is_drained_is_no_reason_for_another_to_let_a_template_go(tmp_path) -> None:
    async with await open_node(tmp_path) as one:
        store = TemplateStore(one._instance.places.templates)
        await build_small(store, "py")
        digest = one._find_held("py").wanted.digest
        assert await one.keeps(digest)
        await one.set_draining(True)
        assert not await one.keeps(digest)
        await store.remove("py")


class Host:
    """Room for `free` machines, which `fork` makes, as `Template.fork` does: at once, or while there is time."""

    def __init__(self, free: int = 0) -> None:
        self.free = free
        self.asked: list[str] = []
        self.given: list[str] = []
        self._changed = asyncio.Condition()

    def ask(self, name: str):
        async def fork(wait_s: float) -> str:
            async with self._changed:
                self.asked.append(name)
                try:
                    async with asyncio.timeout(wait_s or None):
                        await self._changed.wait_for(lambda: self.free > 0 or not wait_s)
                except TimeoutError:
                    raise NoRoom("memory", "the host has none") from None
                if not self.free:
                    raise NoRoom("memory", "the host has none")
                self.free -= 1
                self.given.append(name)
                return name

        return fork

    async def make_room(self, count: int = 1) -> None:
        async with self._changed:
            self.free += count
            self._changed.notify_all()


async def until_they_wait(one: Node, count: int) -> None:
    while one._in_line < count:
        await asyncio.sleep(0)


async def test_room_is_given_to_who_came_first(tmp_path) -> None:
    host, later = Host(1), asyncio.get_running_loop().time() + 600.0
    async with await open_node(tmp_path) as one:
        assert await one._wait_in_line(host.ask("at once"), later) == "at once"
        waiting = []
        for number in range(5):
            waiting.append(asyncio.ensure_future(one._wait_in_line(host.ask(f"{number}"), later)))
            await until_they_wait(one, number + 1)
        waiting[1].cancel()  # who gives up keeps nobody behind from coming up
        for given in (1, 2, 3):
            await host.make_room()
            while len(host.given) <= given:
                await asyncio.sleep(0)
        # One who comes while others wait does not overtake them, though there is room that nobody has taken yet.
        while host.asked[-1] != "4":
            await asyncio.sleep(0)
        host.free = 2  # it will be told later
        waiting.append(asyncio.ensure_future(one._wait_in_line(host.ask("last"), later)))
        await until_they_wait(one, 2)
        assert host.given[-1] == "3"
        await host.make_room(0)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert host.given == ["at once", "0", "2", "3", "4", "last"]
        assert one._in_line == 0


async def test_who_waits_in_vain_is_told_why_and_how_many_were_before(tmp_path) -> None:
    host, loop = Host(), asyncio.get_running_loop()
    async with await open_node(tmp_path) as one:
        with pytest.raises(NoRoom, match="the host has none"):
            await one._wait_in_line(host.ask("at once"), loop.time())
        first = asyncio.ensure_future(one._wait_in_line(host.ask("first"), loop.time() + 600.0))
        await until_they_wait(one, 1)
        with pytest.raises(NoRoom, match="1 callers who came before wait for room on node one") as told:
            await one._wait_in_line(host.ask("second"), loop.time() + 0.01)
        assert "wait_s" in told.value.hint
        await host.make_room()
        assert await first == "first"
        with pytest.raises(NoRoom, match="the host has none"):
            await one._wait_in_line(host.ask("third"), loop.time() + 0.01)
        assert one._in_line == 0


async def test_a_node_whose_tasks_wait_for_memory_says_so_and_how_much_it_can_promise(tmp_path, monkeypatch) -> None:
    readings = Readings(available_mib=5000, total_mib=8000, pressure_percent=0.0)
    asked = []

    def count(_vms, charge, _limits):
        asked.append(charge.share_mib)
        return 7, Promised(), readings

    monkeypatch.setattr(node, "count_room", count)
    async with await open_node(tmp_path) as one:
        assert one._read_room(100) == (8000, 700, "")
        readings = replace(readings, pressure_percent=one._config.limits.max_pressure + 1)
        total, to_give, strained = one._read_room(100)
        assert (total, to_give, asked) == (8000, 700, [100, 100])
        assert "wait for memory" in strained


async def test_two_templates_that_were_never_packed_have_nothing_in_common(tmp_path) -> None:
    """Else a node that has the one seemed to lack nothing of the other."""
    places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
    store = TemplateStore(places.templates)
    await build_small(store, "one", memory_sha256="aa")
    await build_small(store, "other", memory_sha256="bb")
    try:
        async with await open_node(tmp_path) as here:
            held = await here._list_held()
        layers = [{*each.wanted.layers} for each in held.values()]
        assert layers[0] & layers[1] == set()
        assert all(each.wanted.size_bytes == 4096 for each in held.values())
    finally:
        for name in store.list_names():
            await store.remove(name)


async def test_forks_of_a_machine_belong_to_whoever_asked_and_live_though_another_made_it(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    closed = []

    def make(vm_id: str) -> SimpleNamespace:
        async def fork(count: int) -> list[SimpleNamespace]:
            return [make(f"{vm_id}.{number}") for number in range(count)]

        async def aclose() -> None:
            closed.append(vm_id)

        facts = SimpleNamespace(created_at="now")
        return SimpleNamespace(id=vm_id, template="py", facts=facts, fork=fork, aclose=aclose)

    async with await open_node(tmp_path) as one:
        one._keep(make("1"), "k", "maker", lasts=True)
        one._leases["seen"] = 0.0
        forks = await one.fork_vm("1", 2, "forks", "finder", {})
        while "seen" in one._leases:  # it was looked at who is forgotten
            await asyncio.sleep(0.01)
        assert [each.id for each in forks] == ["1.0", "1.1"]
        assert closed == []
        assert one.list_clients() == {"finder"}
        one._leases["finder"] = 0.0
        while len(closed) < 2:
            await asyncio.sleep(0.01)


async def test_of_several_forks_of_a_machine_those_that_could_be_had_are_kept(tmp_path) -> None:
    def make(vm_id: str) -> SimpleNamespace:
        async def fork(count: int, **options) -> list[object]:
            assert options == {"partial": True}
            return [make("2"), NoRoom("memory", "the host has none")]

        async def aclose() -> None:
            pass

        return SimpleNamespace(
            id=vm_id, template="py", facts=SimpleNamespace(created_at="now"), fork=fork, aclose=aclose
        )

    async with await open_node(tmp_path) as one:
        one._keep(make("1"), "k", "maker", lasts=False)
        made, failed = await one.fork_vm("1", 2, "forks", "maker", {"partial": True})
        assert (made.id, made.key) == ("2", "forks-0")
        assert isinstance(failed, NoRoom)
        assert one._counts["forks"] == 1
        assert {*one._machines} == {"1", "2"}


async def test_a_machine_that_two_programs_asked_for_ends_with_the_last_of_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    closed = []

    async def make(self, order) -> Machine:
        async def aclose() -> None:
            closed.append(order.key)

        vm = SimpleNamespace(id="1", template="py", facts=SimpleNamespace(created_at="now"), aclose=aclose)
        return self._keep(vm, order.key, order.client, lasts=order.lasts)

    monkeypatch.setattr(Node, "_make", make)
    async with await open_node(tmp_path) as one:
        orders = [replace(order_of(client), client=client) for client in ("first", "meanwhile", "later")]
        await asyncio.gather(*(one.fork(each) for each in orders[:2]))
        await one.fork(orders[2])
        assert one.list_clients() == {"first", "meanwhile", "later"}
        for ended in ("first", "later"):
            one._leases |= {ended: 0.0, "seen": 0.0}
            while "seen" in one._leases:
                await asyncio.sleep(0.01)
            assert closed == []
        one._leases["meanwhile"] = 0.0
        while not closed:
            await asyncio.sleep(0.01)
        assert not one.list_clients()


@pytest.mark.parametrize(
    ("refusal", "failure", "accels"),
    [(None, None, {"tcg", "kvm"}), (None, "it hangs", {"tcg"}), ("there is none", None, {"tcg"})],
)
async def test_kvm_is_offered_where_nothing_is_known_that_stands_against_it(
    tmp_path, monkeypatch, refusal, failure, accels
) -> None:
    """Whoever places a template of KVM's there finds out in vain else: the device proves nothing."""
    monkeypatch.setattr(node.kvm, "find_refusal", lambda: refusal)
    monkeypatch.setattr(node, "find_failure", lambda _: failure)
    async with await open_node(tmp_path) as one:
        assert (await one.report()).offer.accels == accels
