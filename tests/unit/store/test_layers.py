"""Layers are a cache: the one used least goes when all take too much, and any when something else has no room."""

from __future__ import annotations

import json
import os

import pytest

from tests.unit.store.probe import MEMORY_BYTES
from tests.unit.store.samples import build_small
from vmfork.errors import HostError, StoreBusy
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
