"""A template on its way from node to node: how much of it is in memory at once, whatever its size."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.store.samples import fill
from vmfork.cluster.transfer import _Remote, take_over
from vmfork.config import Instance, Places, VMConfig
from vmfork.errors import ArtifactError
from vmfork.host.thread import in_thread
from vmfork.records import write_record
from vmfork.store import TemplateStore
from vmfork.store.ram_file import create_ram_file, digest_open_ram
from vmfork.travel import artifact as artifact_module
from vmfork.travel.pack import pack
from vmfork.travel.unpack import unpack
from vmfork.units import MIB

LANES = min(len(os.sched_getaffinity(0)), 8)


class Kept(dict[str, bytes]):
    """Layers by digest, as `pack` puts them."""

    takes_several = True

    def put(self, descriptor, data: bytes, /) -> None:
        self[descriptor.digest] = data


class Source:
    """The node that has the layers; counts those that were asked for and are not written yet."""

    def __init__(self, layers: Kept) -> None:
        self.layers = layers
        self.asked = 0
        self.written = 0
        self.most = 0
        self._changing = threading.Lock()

    async def call(self, _node: str, verb: str, _digest: str, layer: str) -> Any:
        assert verb == "layer"
        with self._changing:
            self.asked += 1
            self.most = max(self.most, self.asked - self.written)
        return self.layers[layer]

    def note_written(self, _part: float) -> None:
        with self._changing:
            self.written += 1


@pytest.mark.parametrize("size_mib", [2, 8])
async def test_no_more_than_a_layer_for_each_processor_and_two_are_under_way(tmp_path, monkeypatch, size_mib) -> None:
    """One more waits for its turn, and one is being written."""
    monkeypatch.setattr(artifact_module, "_SPAN", MIB // 16)
    store = TemplateStore(tmp_path / "templates")
    async with await store.stage("one", memory_bytes=size_mib * MIB) as staging:
        os.pwrite(staging.memory_fd, os.urandom(size_mib * MIB), 0)
        await staging.commit(fill(staging))
    layers = Kept()
    try:
        with store.open("one") as opened:
            sent = await in_thread(lambda stop: pack(opened, layers, stop=stop, tell=lambda _: None, tsc_khz=0))
    finally:
        await store.remove("one")
    assert sent is not None
    assert len(sent.memory) == size_mib * 16
    source = Source(layers)
    remote = _Remote(source, ["there"], "digest")
    fd = create_ram_file(tmp_path / "memory", size_bytes=size_mib * MIB)
    try:
        found = await in_thread(
            lambda stop: unpack(sent, remote, memory_fd=fd, of="there", stop=stop, tell=source.note_written)
        )
        assert found is not None
        assert found[0] == digest_open_ram(fd)
    finally:
        os.close(fd)
    assert source.written == len(sent.memory)
    assert 1 <= source.most <= LANES + 2


async def test_a_node_that_sends_what_is_no_machine_is_named(tmp_path) -> None:
    places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
    store = TemplateStore(places.templates)
    async with await store.stage("one", memory_bytes=MIB) as staging:
        await staging.commit(fill(staging))
    try:
        with store.open("one") as opened:
            sent = await in_thread(lambda stop: pack(opened, Kept(), stop=stop, tell=lambda _: None, tsc_khz=0))
    finally:
        await store.remove("one")
    assert sent is not None
    like = sent.manifest
    strange = replace(sent, manifest=replace(like, memory_mib=576, max_memory_mib=256, memory_bytes=576 * MIB))

    class Sends:
        async def call(self, _node: str, _verb: str, *_: Any) -> bytes:
            return write_record(strange)

    async def make_room(_name: str, _need_mib: int) -> None:
        raise AssertionError

    with pytest.raises(ArtifactError, match=r"node there.*256 MiB is less than memory_mib"):
        await take_over(
            "one",
            "digest",
            sources=["there"],
            peers=Sends(),
            instance=Instance(places),
            config=VMConfig(),
            make_room=make_room,
        )
    assert store.list_names() == []
