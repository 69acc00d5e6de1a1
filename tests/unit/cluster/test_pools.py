"""Which pools a node keeps, and to whom it gives what waits there; without machines."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from vmfork.cluster import node as node_module
from vmfork.cluster import pools as pools_module
from vmfork.cluster.node import Node
from vmfork.cluster.pools import Pools
from vmfork.cluster.terms import Order
from vmfork.config import FactoryConfig, Places
from vmfork.errors import Closed, ConfigError, DeadlineExceeded, FallbackRefused, NoRoom, SetupError

CONFIG = FactoryConfig(templates=("py", "js"), cache=2)


class FakeFactory:
    """Keeps the promises of `Factory` for one template: two machines wait once it is open."""

    made: list[FakeFactory]
    refuses: Exception | None = None

    def __init__(self, config: FactoryConfig, *, places: Places) -> None:
        self.config, self.ready, self.is_open = config, 0, False
        self.raises: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    async def open(self) -> FakeFactory:
        if FakeFactory.refuses is not None:
            raise FakeFactory.refuses
        self.ready, self.is_open = 2, True
        FakeFactory.made.append(self)
        return self

    def stats(self) -> SimpleNamespace:
        return SimpleNamespace(pools={"any": SimpleNamespace(ready=self.ready)})

    async def get_vm(self, **options: Any) -> str:
        self.asked.append(options)
        if self.raises is not None:
            raise self.raises
        self.ready -= 1
        return f"vm of {options['template']}"

    async def aclose(self) -> None:
        self.ready, self.is_open = 0, False


@pytest.fixture
def factories(monkeypatch) -> list[FakeFactory]:
    monkeypatch.setattr(pools_module, "Factory", FakeFactory)
    monkeypatch.setattr(FakeFactory, "refuses", None)
    monkeypatch.setattr(FakeFactory, "made", [], raising=False)
    return FakeFactory.made


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(home=tmp_path / "home", runtime=tmp_path / "run")


async def test_there_is_a_pool_of_each_template_that_is_named_while_it_is_in_force(factories, places) -> None:
    async with Pools(CONFIG, places) as pools:
        await pools.follow([])
        assert pools.count_ready() == {}
        await pools.follow(["py", "other"])
        assert pools.count_ready() == {"py": 2}
        await pools.follow(["js", "py"])
        assert pools.count_ready() == {"py": 2, "js": 2}
        assert [each.config.templates for each in factories] == [("py",), ("js",)]
        await pools.follow(["js"])
        assert pools.count_ready() == {"js": 2}
        assert [each.is_open for each in factories] == [False, True]
    assert not any(each.is_open for each in factories)
    await pools.follow(["py"])
    assert len(factories) == 2


async def test_without_a_cache_there_is_none(factories, places) -> None:
    async with Pools(FactoryConfig(templates=("py",)), places) as pools:
        await pools.follow(["py"])
        assert not await pools.give_way()
        assert await pools.take("py", {}) is None
    assert factories == []


async def test_what_waits_is_given_as_asked_until_there_is_none(factories, places) -> None:
    async with Pools(CONFIG, places) as pools:
        await pools.follow(["py"])
        options = {"env": {"A": "b"}, "files": {}, "ttl_s": 9.0, "card": "none", "disk": None, "cpus": None}
        assert await pools.take("py", {**options, "timeout_s": None}) == "vm of py"
        assert await pools.take("py", {**options, "timeout_s": 5.0}) == "vm of py"
        assert await pools.take("py", options) is None
        assert await pools.take("other", options) is None
        (factory,) = factories
        for asked in factory.asked:
            del asked["timeout_s"]
            assert asked == {"template": "py", "env": {"A": "b"}, "files": {}, "ttl_s": 9.0}


@pytest.mark.parametrize("option", [{"cpus": 2}, {"memory_mib": 512}, {"disk": 64}, {"card": "user"}], ids=str)
async def test_what_a_machine_is_begun_with_is_given_to_none_that_waits(factories, places, option) -> None:
    async with Pools(CONFIG, places) as pools:
        await pools.follow(["py"])
        assert await pools.take("py", option) is None
        assert pools.count_ready() == {"py": 2}


@pytest.mark.parametrize("error", [FallbackRefused("unhealthy", "all were"), Closed("the factory")], ids=repr)
async def test_who_could_not_be_given_one_is_to_be_given_a_fork(factories, places, error) -> None:
    async with Pools(CONFIG, places) as pools:
        await pools.follow(["py"])
        factories[0].raises = error
        assert await pools.take("py", {}) is None
        factories[0].raises = SetupError("a hook", "it failed")
        with pytest.raises(SetupError):
            await pools.take("py", {})


async def test_a_limit_of_time_holds_for_what_waits_too(factories, places, monkeypatch) -> None:
    async def get_vm(self, **options: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeFactory, "get_vm", get_vm)
    async with Pools(CONFIG, places) as pools:
        await pools.follow(["py"])
        with pytest.raises(DeadlineExceeded, match="py"):
            await pools.take("py", {"timeout_s": 0.01})


async def test_they_give_way_for_some_time(factories, places, monkeypatch) -> None:
    async with Pools(CONFIG, places) as pools:
        await pools.follow(["py", "js"])
        assert await pools.give_way()
        assert not any(each.is_open for each in factories)
        await pools.follow(["py", "js"])
        assert pools.count_ready() == {}
        assert not await pools.give_way()
        monkeypatch.setattr(pools_module, "REST_S", 0.0)
        await pools.give_way()
        await pools.follow(["py", "js"])
        assert pools.count_ready() == {"py": 2, "js": 2}


async def test_a_pool_that_cannot_be_opened_is_told_once_and_tried_again(factories, places, caplog) -> None:
    FakeFactory.refuses = ConfigError("factory.cache", 2, "the host has no memory for it")
    async with Pools(CONFIG, places) as pools:
        with caplog.at_level(logging.WARNING, logger="vmfork"):
            for _ in range(3):
                await pools.follow(["py"])
        assert [each.message for each in caplog.records] == [
            "no machines of template 'py' wait here: factory.cache: the host has no memory for it"
        ]
        FakeFactory.refuses = None
        await pools.follow(["py"])
        assert pools.count_ready() == {"py": 2}


def order_of(**changes: Any) -> Order:
    return Order(template="py", digest="d", key="k", client="program", **{"options": {}, **changes})


@pytest.fixture
async def one(factories, places, monkeypatch):
    """A node that has the template in force, and machines of it that wait; it forks where there is room."""

    async def held(self) -> dict[str, None]:
        return {"py": None}

    async def open_template(self, order) -> SimpleNamespace:
        return SimpleNamespace(fork=self.fork_it, start=self.fork_it)

    monkeypatch.setattr(Node, "_list_held", held)
    monkeypatch.setattr(Node, "_open", open_template)
    monkeypatch.setattr(Node, "_keep", lambda _self, vm, *_, **__: vm)
    async with await Node.open("one", {}, labels={}, places=places, config=CONFIG) as node:
        await node._follow()
        yield node


async def fork_it(**options: Any) -> str:
    return "fork"


async def test_a_node_gives_what_waits_first_and_forks_then(one) -> None:
    one.fork_it = fork_it
    assert [await one._make(order_of()) for _ in range(3)] == ["vm of py", "vm of py", "fork"]
    assert (one._counts["forks"], one._counts["from_pool"]) == (3, 2)


async def test_one_that_lasts_is_not_one_that_waited(one) -> None:
    one.fork_it = fork_it
    assert await one._make(order_of(lasts=True)) == "fork"
    assert one._counts["from_pool"] == 0


async def test_what_waits_is_no_reason_to_refuse(one, factories) -> None:
    """Nobody has said that he would wait: there is room at once, once the pools gave theirs up."""

    async def fork(wait_s: float, **options: Any) -> str:
        if any(each.is_open for each in factories):
            raise NoRoom("memory", "machines that wait have it")
        return "fork"

    one.fork_it = fork
    assert await one._make(order_of(options={"disk": 64})) == "fork"
    assert one._pools.count_ready() == {}

    async def full(wait_s: float, **options: Any) -> str:
        raise NoRoom("memory", "others have it")

    one.fork_it = full
    with pytest.raises(NoRoom):
        await one._make(order_of())


async def test_a_node_that_is_drained_keeps_none(one, factories, monkeypatch) -> None:
    monkeypatch.setattr(pools_module, "REST_S", 0.0)
    await one.set_draining(True)
    assert not any(each.is_open for each in factories)
    await one._follow()
    assert one._pools.count_ready() == {}
    await one.set_draining(False)
    monkeypatch.setattr(node_module, "_LOOK_EVERY_S", 0.01)
    await one._follow()
    assert one._pools.count_ready() == {"py": 2}
