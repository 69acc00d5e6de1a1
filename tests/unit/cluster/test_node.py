"""What a node keeps for programs, without an engine and without machines."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from vmfork.cluster import node
from vmfork.cluster.node import Node
from vmfork.cluster.terms import Machine, Order
from vmfork.config import Places
from vmfork.errors import ClusterError, VMNotFound

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
        await one.spool("token", b"a")
        await one.spool("token", b"b")
        assert len(list_spools()) == 1
        with pytest.raises(VMNotFound):
            await one.put("gone", "token", "/", {})
        assert not list_spools()


async def test_what_nobody_sends_the_rest_of_is_dropped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    async with await open_node(tmp_path) as one:
        await one.spool("kept", b"a")
        monkeypatch.setattr(node, "LEASE_S", 0.0)
        await one.spool("left", b"a")
        while len(list_spools()) > 1:
            await asyncio.sleep(0.01)
        await one.spool("kept", b"b")
    assert not list_spools()


async def test_what_was_dropped_cannot_be_put(tmp_path) -> None:
    async with await open_node(tmp_path) as one:
        with pytest.raises(ClusterError, match="nothing of what was sent"):
            await one.put("vm", "token", "/", {})


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
