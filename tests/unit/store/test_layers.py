"""Layers are a cache: the one used least goes when all take too much, and any when something else has no room."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from tests.unit.store.probe import MEMORY_BYTES
from tests.unit.store.samples import build_small
from vmfork.errors import HostError, StoreBusy
from vmfork.image import DiskStore
from vmfork.store import layers as module
from vmfork.store.folder import CURRENT
from vmfork.store.layers import LayerStore
from vmfork.store.staging import ShortOfMemory
from vmfork.units import MIB


@pytest.fixture
def layers(store, monkeypatch):
    """Those of a host whose layers may take 300 MiB together."""
    monkeypatch.setattr(module.facts, "total_memory_bytes", lambda: 3000 * MIB)
    return LayerStore(store.folder)


@pytest.fixture
def keep(store):
    """A layer of 100 MiB by its manifest, last used `used_at` seconds after 1970."""

    async def keep(name: str, *, used_at: float) -> None:
        await build_small(store, name, memory_allocated_bytes=100 * MIB)
        os.utime(store.folder / name / "lock", (used_at, used_at))

    return keep


@pytest.fixture
async def three(layers, keep):
    """`a`, `b` and `c`, used last in the order b, c, a."""
    for name, used_at in (("a", 3), ("b", 1), ("c", 2)):
        await keep(name, used_at=used_at)
    return layers


def names(layers: LayerStore) -> list[str]:
    return [layer.name for layer in layers.list_all()]


async def test_the_last_of_a_recipes_layers_that_is_there_is_opened_and_counts_as_used(three) -> None:
    assert three.open_last(["none", "missing"]) is None
    number, opened = three.open_last(["a", "b", "missing"])
    with opened:
        assert (number, opened.manifest.name) == (1, "b")
        assert names(three) == ["c", "a", "b"]
        assert await three.remove("b")
        assert os.pread(opened.memory_fd, 16, 0).decode() == opened.manifest.generation  # still usable


async def test_one_that_is_to_come_has_room_where_those_used_least_went(three, store) -> None:
    staging = await three.stage("d", memory_bytes=MEMORY_BYTES, need_mib=150)
    async with staging:
        assert names(three) == ["a"]
    assert names(three) == ["a"]


async def test_a_limit_that_was_given_is_in_the_place_of_a_part_of_the_host(three, store) -> None:
    given = LayerStore(store.folder, most_mib=250)
    assert await given.stage("d", memory_bytes=MEMORY_BYTES, need_mib=251) is None
    staging = await given.stage("d", memory_bytes=MEMORY_BYTES, need_mib=150)
    async with staging:
        assert names(three) == ["a"]
    assert await LayerStore(store.folder, most_mib=0).stage("d", memory_bytes=MEMORY_BYTES, need_mib=1) is None
    assert names(three) == ["a"]


async def test_what_is_more_than_all_may_take_or_is_made_by_others_is_not_kept(three, store, monkeypatch) -> None:
    assert await three.stage("d", memory_bytes=MEMORY_BYTES, need_mib=301) is None
    assert names(three) == ["b", "c", "a"]
    assert await three.stage("a", memory_bytes=MEMORY_BYTES, need_mib=0) is None
    async with await store.stage("e", memory_bytes=MEMORY_BYTES):
        assert await three.stage("e", memory_bytes=MEMORY_BYTES, need_mib=0) is None
    monkeypatch.setattr("vmfork.store.staging.facts.available_memory_bytes", lambda: 0)
    assert await three.stage("d", memory_bytes=MEMORY_BYTES, need_mib=0) is None
    assert names(three) == ["b", "c", "a"]


async def test_they_go_one_by_one_as_long_as_something_else_has_no_room(three, store) -> None:
    asked = []

    async def make() -> str:
        asked.append(names(three))
        if len(asked) < 3:
            raise ShortOfMemory("no room")
        return "made"

    assert await three.giving_way(make) == "made"
    assert asked == [["b", "c", "a"], ["c", "a"], ["a"]]


async def test_an_error_stays_one_when_no_layer_is_left_and_any_other_costs_none(three) -> None:
    async def make() -> None:
        raise StoreBusy("it")

    with pytest.raises(StoreBusy):
        await three.giving_way(make)
    assert names(three) == ["b", "c", "a"]

    async def fail() -> None:
        raise HostError("a folder belongs to another user")

    with pytest.raises(HostError, match="another user"):
        await three.giving_way(fail)
    assert names(three) == ["b", "c", "a"]

    async def refuse() -> None:
        raise ShortOfMemory("no room")

    with pytest.raises(ShortOfMemory, match="no room"):
        await three.giving_way(refuse)
    assert names(three) == []
    assert not await three.give_way()


async def test_one_that_is_made_just_now_cannot_go_and_the_next_does(three, store) -> None:
    async with await store.stage("b", memory_bytes=MEMORY_BYTES, replace=True):
        assert await three.give_way()
        assert names(three) == ["b", "a"]
        await three.remove_all()
        assert names(three) == ["b"]


@pytest.fixture
def disks(tmp_path):
    return DiskStore(tmp_path / "home" / "disks")


@pytest.fixture
def keep_disk(store, disks, tmp_path):
    """A layer of 1 MiB of memory, and the file of so many MiB that was on its disk."""

    async def keep(name: str, *, used_at: float, disk_mib: int) -> str:
        data = os.urandom(disk_mib * MIB - (64 << 10))  # the file system takes a little for itself
        sha256 = hashlib.sha256(data).hexdigest()
        path = tmp_path / name
        path.write_bytes(data)
        disks.add(path, sha256)
        generation = await build_small(store, name, memory_allocated_bytes=MIB, disk_mib=8, disk_sha256=sha256)
        disks.hold_for(store.folder / name / generation, sha256, image="default")
        os.utime(store.folder / name / "lock", (used_at, used_at))
        return sha256

    return keep


async def test_disks_have_a_limit_of_their_own_and_go_with_their_layers(store, disks, keep, keep_disk) -> None:
    digests = [await keep_disk(name, used_at=used_at, disk_mib=4) for name, used_at in (("a", 1), ("b", 3))]
    await keep("bare", used_at=0)
    layers = LayerStore(store.folder, disks=disks, most_mib=1000, most_disk_mib=10)
    assert [(layer.name, layer.disk_mib) for layer in layers.list_all()] == [("bare", 0), ("a", 4), ("b", 4)]
    assert await layers.make_room(1, disk_mib=2)
    assert not await layers.make_room(1, disk_mib=11)  # more than all may take: none goes for it
    assert names(layers) == ["bare", "a", "b"]
    assert await layers.make_room(1, disk_mib=3)  # one without a disk helps nobody who is short of that
    assert names(layers) == ["bare", "b"]
    assert [disks.locate(sha256).exists() for sha256 in digests] == [False, True]
    assert await layers.make_room(1000)  # and who is short of memory is helped by any
    assert names(layers) == []
    assert (disks.locate(digests[1]).exists(), disks.find_waste()) == (False, [])


async def test_no_disk_is_kept_where_disks_may_take_nothing(store, disks, keep_disk) -> None:
    await keep_disk("a", used_at=1, disk_mib=4)
    none = LayerStore(store.folder, disks=disks, most_mib=1000, most_disk_mib=0)
    assert await none.stage("b", memory_bytes=MEMORY_BYTES, need_mib=1, disk_mib=1) is None
    assert names(none) == ["a"]
    staging = await none.stage("b", memory_bytes=MEMORY_BYTES, need_mib=1)
    async with staging:
        assert names(none) == ["a"]  # of one that has no disk nothing is asked


async def test_by_default_disks_take_a_tenth_of_what_would_be_free_without_them(
    store, disks, keep_disk, monkeypatch
) -> None:
    await keep_disk("a", used_at=1, disk_mib=4)
    monkeypatch.setattr(module.facts, "free_space_bytes", lambda _: 96 * MIB)
    layers = LayerStore(store.folder, disks=disks, most_mib=1000)
    assert not await layers.make_room(1, disk_mib=11)
    assert await layers.make_room(1, disk_mib=6)
    assert names(layers) == ["a"]
    assert await layers.make_room(1, disk_mib=7)
    assert names(layers) == []


async def test_a_disk_that_a_machine_reads_or_another_has_too_outlives_its_layer(
    store, disks, keep_disk, tmp_path
) -> None:
    sha256 = await keep_disk("a", used_at=1, disk_mib=1)
    layers = LayerStore(store.folder, disks=disks)
    with disks.opened(sha256, image="default") as fd:
        assert await layers.remove("a")
        assert hashlib.sha256(os.pread(fd, MIB, 0)).hexdigest() == sha256
        assert disks.locate(sha256).exists()
    disks.hold_for(tmp_path, sha256, image="default")  # a template in which nothing was written since
    disks.sweep()
    assert disks.locate(sha256).exists()


async def test_who_looks_at_no_disk_leaves_it_to_the_next_sweep(store, disks, keep_disk) -> None:
    sha256 = await keep_disk("a", used_at=1, disk_mib=1)
    assert await LayerStore(store.folder).give_way()
    assert disks.find_waste() == [disks.locate(sha256).parent]
    assert not await LayerStore(store.folder, disks=disks).give_way()
    disks.sweep()
    assert not disks.locate(sha256).exists()


async def test_what_nobody_can_go_on_from_is_passed_over_goes_first_and_is_made_anew(three, store) -> None:
    """Damaged, or of another vmfork: it took memory until the host was booted again, and its name."""
    manifest = store.folder / "a" / CURRENT / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 999}))
    (store.folder / "c" / CURRENT / "state").write_bytes(b"damaged")
    number, opened = three.open_last(["b", "a", "c", "unknown"])
    with opened:
        assert number == 0
    assert names(three) == ["a", "c", "b"]
    assert [layer.mib for layer in three.list_all()] == [1, 100, 100]
    for name in ("a", "c"):
        staging = await three.stage(name, memory_bytes=MEMORY_BYTES, need_mib=0)
        async with staging:
            assert name not in names(three)
    assert names(three) == ["b"]


async def test_what_is_beside_the_layers_and_none_is_left_alone(three, store) -> None:
    stray = store.folder / "stray"
    stray.mkdir()
    (stray / "data").write_text("a stranger's")
    assert three.open_last(["stray"]) is None
    await three.remove_all()
    assert (names(three), (stray / "data").exists()) == ([], True)
    assert not await three.remove("stray")
    (stray / "data").unlink()
    stray.rmdir()
