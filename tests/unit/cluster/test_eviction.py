"""Templates that came from other nodes go for others, least used first, and never the last one of its kind."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.store.samples import build_small
from vmfork.cluster import transfer
from vmfork.cluster.eviction import Eviction
from vmfork.cluster.node import Node
from vmfork.cluster.terms import digest_of
from vmfork.cluster.transfer import Packed
from vmfork.config import Budget, FactoryConfig, Instance, Places
from vmfork.errors import ArtifactError, NodeLost
from vmfork.store import TemplateStore
from vmfork.template import budget as budget_module
from vmfork.units import MIB


class Peers:
    """Nodes that are asked for what they keep; of `keeping` each keeps what it was given."""

    def __init__(self, **keeping: set[str]) -> None:
        self.keeping = keeping
        self.asked: list[str] = []

    async def list_nodes(self) -> list[str]:
        return [*self.keeping]

    async def call(self, node: str, verb: str, *args: Any) -> Any:
        assert verb == "keeps"
        self.asked.append(node)
        if node not in self.keeping:
            raise NodeLost(node)
        return args[0] in self.keeping[node]


@pytest.fixture
async def places(tmp_path):
    places = Places(home=tmp_path / "home", runtime=tmp_path / "runtime")
    yield places
    store = TemplateStore(places.templates)
    for name in store.list_names():
        await store.remove(name)


@pytest.fixture
def bring(places):
    """A template of 100 MiB by its manifest that came from a node; gives its digest."""

    async def bring(name: str, *, used_at: float, came_from: str = "node origin") -> str:
        store = TemplateStore(places.templates)
        await build_small(store, name, memory_allocated_bytes=100 * MIB, came_from=came_from)
        os.utime(store.folder / name / "lock", (used_at, used_at))
        return digest_of(store.read_manifest(name))

    return bring


def names(places: Places) -> list[str]:
    return TemplateStore(places.templates).list_names()


def evicting(places: Places, peers: Peers, *, mib: int = 300, sent: set[str] | None = None, told=None) -> Eviction:
    instance = Instance(places, (told if told is not None else []).append, budget=Budget(mib, ("kept",)))
    return Eviction("here", instance, peers, is_sent=(sent or set()).__contains__)


async def test_the_one_used_least_goes_and_as_few_as_will_do(places, bring) -> None:
    digests = {await bring(name, used_at=at) for name, at in (("newest", 30), ("oldest", 10), ("middle", 20))}
    told = []
    eviction = evicting(places, Peers(origin=digests), told=told)
    await eviction.make_room("new", 100)
    assert names(places) == ["middle", "newest"]
    assert "removing 'oldest'" in told[0].step
    await eviction.make_room("new", 100)
    assert (names(places), len(told)) == (["middle", "newest"], 1)
    await eviction.make_room("newest", 200)  # what it replaces counts for nothing
    assert (names(places), len(told)) == (["middle", "newest"], 1)
    await eviction.make_room("new", 101)
    assert names(places) == ["newest"]
    assert not any(eviction.is_going(digest) for digest in digests)


async def test_one_in_use_stays_and_one_that_is_given_to_another_now_and_one_that_is_named(
    places, bring, monkeypatch
) -> None:
    digests = {name: await bring(name, used_at=at) for at, name in enumerate(("forked", "sent", "kept", "free"), 1)}
    monkeypatch.setattr(budget_module, "list_records", lambda _: [SimpleNamespace(template="forked")])
    eviction = evicting(places, Peers(origin={*digests.values()}), mib=400, sent={digests["sent"]})
    await eviction.make_room("new", 100)
    assert names(places) == ["forked", "kept", "sent"]
    await eviction.make_room("new", 101)  # nothing more may go
    assert names(places) == ["forked", "kept", "sent"]


async def test_where_not_enough_may_go_all_stay(places, bring) -> None:
    digest = await bring("free", used_at=1)
    for at, name in enumerate(("one", "other"), 2):
        await bring(name, used_at=at, came_from="a file")
    await evicting(places, Peers(origin={digest})).make_room("new", 200)
    assert names(places) == ["free", "one", "other"]


async def test_what_nobody_else_has_stays(places, bring) -> None:
    digests = [await bring(name, used_at=at) for at, name in enumerate(("one", "two", "three"), 1)]
    peers = Peers(other={digests[1]}, here={*digests})
    await evicting(places, peers).make_room("new", 100)
    assert names(places) == ["one", "three"]
    assert peers.asked == ["origin", "other", "origin", "other"]  # the origin has ended; nobody asks itself


async def test_without_a_budget_nobody_is_asked(places, bring) -> None:
    digest = await bring("one", used_at=1)
    peers = Peers(origin={digest})
    await evicting(places, peers, mib=0).make_room("new", 100_000)
    assert (names(places), peers.asked) == (["one"], [])


async def test_two_that_have_it_from_each_other_do_not_both_let_it_go(tmp_path) -> None:
    """Each asks the other whether it keeps the template, at the same time, and one at most is told so."""
    nodes: dict[str, Node] = {}
    both_ask = asyncio.Barrier(2)

    class EachOther:
        async def list_nodes(self) -> list[str]:
            return [*nodes]

        async def call(self, node: str, verb: str, *args: Any) -> Any:
            await both_ask.wait()
            return await nodes[node].serve(verb, *args)

    for name, other in (("a", "b"), ("b", "a")):
        places = Places(home=tmp_path / name, runtime=tmp_path / f"run-{name}")
        store = TemplateStore(places.templates)
        same = {"memory_sha256": "dd", "memory_allocated_bytes": 100 * MIB}
        await build_small(store, "shared", came_from=f"node {other}", **same)
        nodes[name] = await Node.open(name, EachOther(), labels={}, places=places, config=FactoryConfig(budget_mib=100))
    digests = [
        digest_of(TemplateStore(each._instance.places.templates).read_manifest("shared")) for each in nodes.values()
    ]
    try:
        assert await nodes["a"].keeps(digests[0])
        await asyncio.gather(*(each._eviction.make_room("new", 100) for each in nodes.values()))
        assert ["shared"] in [names(each._instance.places) for each in nodes.values()]
        assert not await nodes["a"].keeps("another")
    finally:
        for each in nodes.values():
            await each.aclose()
            for left in names(each._instance.places):
                await TemplateStore(each._instance.places.templates).remove(left)


def put_packed(home, digest: str, *, used_at: float) -> None:
    folder = home / "cluster" / digest
    folder.mkdir(parents=True)
    (folder / ("f" * 64)).write_bytes(b"x" * 100)
    os.utime(folder, (used_at, used_at))


async def test_packed_layers_go_by_use_within_their_budget_and_never_those_that_are_sent(tmp_path, monkeypatch) -> None:
    digests = [letter * 64 for letter in "abcd"]
    for at, digest in enumerate(digests, 1):
        put_packed(tmp_path, digest, used_at=at)
    packed = Packed(tmp_path, budget_bytes=300)
    layer = f"sha256:{'f' * 64}"
    assert len(await packed.read(digests[0], layer)) == 100
    assert [packed.is_sent(digest) for digest in digests] == [True, False, False, False]
    packed._make_room(digests[3])
    assert sorted(path.name[0] for path in (tmp_path / "cluster").iterdir()) == ["a", "c", "d"]
    packed = Packed(tmp_path, budget_bytes=0)
    assert len(await packed.read(digests[0], layer)) == 100
    packed._make_room(digests[3])
    assert sorted(path.name[0] for path in (tmp_path / "cluster").iterdir()) == ["a", "d"]
    monkeypatch.setattr(transfer, "SENDING_S", 0.0)  # nobody has come for more
    packed._make_room(digests[3])
    assert sorted(path.name[0] for path in (tmp_path / "cluster").iterdir()) == ["d"]
    with pytest.raises(ArtifactError, match="missing"):
        await packed.read(digests[0], layer)
