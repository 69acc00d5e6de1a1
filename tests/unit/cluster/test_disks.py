"""What a template's machines read beside RAM and state goes from node to node with it. Without machines."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.store.samples import fill
from tests.unit.template.disks import find_disk_fields, list_disks
from tests.unit.template.sparse import CONTENT, FITS, MIB
from vmfork.cluster import node as node_module
from vmfork.cluster import transfer
from vmfork.cluster.node import Node
from vmfork.cluster.terms import digest_of
from vmfork.config import Budget, Places
from vmfork.errors import ArtifactError, ImageCorrupt, NodeLost
from vmfork.image import DiskStore
from vmfork.machine.traits import DISK
from vmfork.records import read_record
from vmfork.store import TemplateStore
from vmfork.travel import files
from vmfork.travel.artifact import Artifact

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.needs("qemu")

LANES = min(len(os.sched_getaffinity(0)), 8)
PIECE = 1 << 16
ROOT = os.urandom(20 * PIECE) + b"root"


class Joined:
    """Nodes of one process that call each other; what was asked for by `layer`, and how many at once."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.layers: Counter[str] = Counter()
        self.changed: dict[str, bytes] = {}
        self.under_way = self.most = 0

    async def list_nodes(self) -> list[str]:
        return [*self.nodes]

    async def call(self, node: str, verb: str, *args: Any) -> Any:
        if node not in self.nodes:
            raise NodeLost(node)
        if verb != "layer":
            return await self.nodes[node].serve(verb, *args)
        self.layers[args[1]] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            found = await self.nodes[node].serve(verb, *args)
            return self.changed.get(args[1], found)
        finally:
            self.under_way -= 1


@pytest.fixture
async def joined(tmp_path, monkeypatch):
    """Two nodes, `a` and `b`. Disks travel in small pieces."""
    monkeypatch.setattr(files, "SPAN", PIECE)
    joined = Joined()
    for name in "ab":
        places = Places(home=tmp_path / name, runtime=tmp_path / f"run-{name}")
        joined.nodes[name] = await Node.open(name, joined, labels={}, places=places)
    yield joined
    for node in joined.nodes.values():
        await node.aclose()
        TemplateStore(places_of(node).templates).clear()


def places_of(node: Node) -> Places:
    return node._instance.places


async def build(node: Node, name: str, *, root: bytes = ROOT) -> str:
    """A template whose root is on a disk, and whose machines have one; gives its digest."""
    places = places_of(node)
    store = TemplateStore(places.templates)
    async with await store.stage(name, memory_bytes=64 * MIB) as staging:
        for position, data in CONTENT.items():
            os.pwrite(staging.memory_fd, data, position)
        os.pwrite(staging.memory_fd, name.encode(), MIB)
        fields = await find_disk_fields(places, root)
        await staging.commit(fill(staging, **{**FITS, **fields}))
    m = store.read_manifest(name)
    for sha256 in (m.traits[DISK], m.disk_sha256):
        DiskStore(places.disks).hold_for(store.folder / name / m.generation, sha256, image="image")
    return digest_of(m)


async def list_disk_layers(node: Node, digest: str) -> list[str]:
    artifact = read_record(Artifact, await node.artifact(digest))
    return [layer.digest for disk in artifact.disks for layer in disk.layers]


async def test_they_come_with_it_a_few_pieces_at_a_time_and_stay_as_long_as_it_does(joined) -> None:
    a, b = joined.nodes.values()
    digest = await build(a, "py")
    await asyncio.gather(*(b.pull("py", digest, ["a"]) for _ in range(3)))
    assert {*await list_disk_layers(a, digest)} <= {*joined.layers}
    assert {*joined.layers.values()} == {1}
    assert 1 <= joined.most <= LANES + 2
    store, disks = TemplateStore(places_of(b).templates), DiskStore(places_of(b).disks)
    m = store.read_manifest("py")
    assert digest_of(m) == digest
    assert list_disks(places_of(b)) == {m.traits[DISK], m.disk_sha256}
    for sha256 in list_disks(places_of(b)):
        disks.verify(sha256, image="any")
    assert disks.sweep() == []
    await store.remove("py")
    disks.sweep()
    assert list_disks(places_of(b)) == set()


async def test_one_that_is_packed_while_another_makes_room_is_whole(joined, monkeypatch) -> None:
    a, _ = joined.nodes.values()
    digests = {name: await build(a, name) for name in ("first", "second")}
    is_packed, go_on = threading.Event(), threading.Event()
    pack = transfer.pack

    def pack_held(opened, *args, **options):
        artifact = pack(opened, *args, **options)
        if opened.manifest.name == "first":
            is_packed.set()
            assert go_on.wait(60)
        return artifact

    monkeypatch.setattr(transfer, "pack", pack_held)
    monkeypatch.setattr(a._packed, "_budget_bytes", 0)
    packing = asyncio.ensure_future(a.artifact(digests["first"]))
    try:
        assert await asyncio.to_thread(is_packed.wait, 60)
        await a.artifact(digests["second"])
    finally:
        go_on.set()
    artifact = read_record(Artifact, await packing)
    for layer in artifact.layers:
        assert len(await a.layer(digests["first"], layer.digest)) == layer.size_bytes


async def test_one_that_is_there_for_another_template_does_not_travel_and_counts_as_there(joined) -> None:
    a, b = joined.nodes.values()
    first, second = await build(a, "first"), await build(a, "second")
    await b.pull("first", first, ["a"])
    joined.layers.clear()
    wanted = next(held.wanted for held in (await a.report()).held if held.name == "second")
    lacks = wanted.layers.keys() - (await b.report()).offer.layers
    assert lacks == {second}  # its RAM, which is not packed yet
    await b.pull("second", second, ["a"])
    assert joined.layers
    assert joined.layers.keys().isdisjoint(await list_disk_layers(a, second))


async def test_two_templates_of_one_disk_that_come_at_once_bring_it_once(joined) -> None:
    a, b = joined.nodes.values()
    digests = {name: await build(a, name) for name in ("first", "second")}
    await asyncio.gather(*(b.pull(name, digest, ["a"]) for name, digest in digests.items()))
    assert TemplateStore(places_of(b).templates).list_names() == ["first", "second"]
    assert {joined.layers[layer] for layer in await list_disk_layers(a, digests["first"])} == {1}


async def test_a_piece_that_is_another_is_refused_and_leaves_nothing(joined) -> None:
    a, b = joined.nodes.values()
    digest = await build(a, "py")
    layer = (await list_disk_layers(a, digest))[7]
    joined.changed[layer] = b"another"
    with pytest.raises(ArtifactError, match=f"node a.*{layer}"):
        await b.pull("py", digest, ["a"])
    assert TemplateStore(places_of(b).templates).list_names() == []
    assert list_disks(places_of(b)) == set()
    joined.changed.clear()
    await b.pull("py", digest, ["a"])


async def test_where_one_is_missing_the_template_comes_from_the_next_that_has_it_whole(joined, tmp_path) -> None:
    a, b = joined.nodes.values()
    digest = await build(a, "py")
    await b.pull("py", digest, ["a"])
    places = Places(home=tmp_path / "c", runtime=tmp_path / "run-c")
    joined.nodes["c"] = c = await Node.open("c", joined, labels={}, places=places)
    damaged = places_of(b).disks / TemplateStore(places_of(b).templates).read_manifest("py").disk_sha256 / "disk"
    damaged.unlink()
    with pytest.raises(ImageCorrupt, match="is missing"):
        await c.pull("py", digest, ["b"])
    await c.pull("py", digest, ["b", "a"])
    assert len(list_disks(places)) == 2


async def test_one_goes_with_the_last_template_that_makes_room_for_another(joined) -> None:
    a, b = joined.nodes.values()
    digests = {name: await build(a, name, root=os.urandom(PIECE)) for name in ("first", "second")}
    b._instance = b._eviction._instance = type(b._instance)(places_of(b), budget=Budget(64))
    await b.pull("first", digests["first"], ["a"])
    before = list_disks(places_of(b))
    await b.pull("second", digests["second"], ["a"])
    assert TemplateStore(places_of(b).templates).list_names() == ["second"]
    m = TemplateStore(places_of(b).templates).read_manifest("second")
    assert list_disks(places_of(b)) == {m.traits[DISK], m.disk_sha256}
    assert len(before - list_disks(places_of(b))) == 1  # the disk that machines write to began alike for both


async def test_of_several_templates_two_are_taken_at_a_time(tmp_path, monkeypatch) -> None:
    """Each has a thread of the few that the loop has for all, and waits in it for others, which need one to answer."""
    taking, most, may_end = set[str](), 0, asyncio.Event()

    async def take_over(name: str, _digest: str, *, sources: Sequence[str], **_: Any) -> None:
        nonlocal most
        assert sources == ["a"]
        taking.add(name)
        most = max(most, len(taking))
        await may_end.wait()
        taking.discard(name)

    monkeypatch.setattr(node_module, "take_over", take_over)
    places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
    async with await Node.open("b", Joined(), labels={}, places=places) as node:
        pulls = [asyncio.ensure_future(node.pull(str(number), str(number), ["a", "b"])) for number in range(6)]
        while len(taking) < transfer.AT_ONCE:
            await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(*pulls)
        assert most == transfer.AT_ONCE
