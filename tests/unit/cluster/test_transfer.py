"""A template on its way from node to node: how much of it is in memory at once, whatever its size."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.store.samples import fill
from vmfork.cluster.transfer import Packed, _Remote, take_over
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

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.travel.artifact import Artifact

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
        self.layers_asked: list[str] = []
        self.written = 0
        self.most = 0
        self._changing = threading.Lock()

    async def call(self, _node: str, verb: str, _digest: str, layer: str) -> Any:
        assert verb == "layer"
        with self._changing:
            self.asked += 1
            self.layers_asked.append(layer)
            self.most = max(self.most, self.asked - self.written)
        return self.layers[layer]

    def note_written(self, _part: float) -> None:
        with self._changing:
            self.written += 1


async def pack_noise(store: TemplateStore, size_mib: int, layers: Kept) -> Artifact:
    """The artifact of a template of so much RAM that cannot be compressed; its layers are in `layers`."""
    async with await store.stage("one", memory_bytes=size_mib * MIB) as staging:
        os.pwrite(staging.memory_fd, os.urandom(size_mib * MIB), 0)
        await staging.commit(fill(staging))
    try:
        with store.open("one") as opened:
            sent = await in_thread(lambda stop: pack(opened, layers, stop=stop, tell=lambda _: None, tsc_khz=0))
    finally:
        await store.remove("one")
    assert sent is not None
    return sent


async def receive(sent: Artifact, remote: _Remote, path: Path, *, tell=lambda _: None) -> bool:
    """Whether the RAM that came is what was sent."""
    size_bytes = sent.manifest.memory_bytes
    fd = create_ram_file(path, size_bytes=size_bytes)
    try:
        found = await in_thread(lambda stop: unpack(sent, remote, memory_fd=fd, of="there", stop=stop, tell=tell))
        assert found is not None
        return found[0] == digest_open_ram(fd) and found[0].sha256 == sent.manifest.memory_sha256
    finally:
        os.close(fd)


@pytest.mark.parametrize("size_mib", [2, 8])
async def test_no_more_than_a_layer_for_each_processor_and_two_are_under_way(tmp_path, monkeypatch, size_mib) -> None:
    """One more waits for its turn, and one is being written."""
    monkeypatch.setattr(artifact_module, "_SPAN", MIB // 16)
    layers = Kept()
    sent = await pack_noise(TemplateStore(tmp_path / "templates"), size_mib, layers)
    assert len(sent.memory) == size_mib * 16
    source = Source(layers)
    remote = _Remote(source, ["there"], "digest", find_own=lambda _: None)
    assert await receive(sent, remote, tmp_path / "memory", tell=source.note_written)
    assert source.written == len(sent.memory)
    assert 1 <= source.most <= LANES + 2


def damage(layer: bytes) -> bytes:
    return layer[:-1] + bytes((layer[-1] ^ 1,))


async def test_layers_that_the_node_packed_itself_do_not_travel_unless_they_are_damaged(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(artifact_module, "_SPAN", MIB // 2)
    layers = Kept()
    sent = await pack_noise(TemplateStore(tmp_path / "templates"), 2, layers)
    whole, damaged, unfinished, *others = (each.digest for each in sent.memory)
    packed = tmp_path / "home" / "cluster"
    for folder, layer, content in (
        ("a" * 64, whole, layers[whole]),
        ("b" * 64, damaged, damage(layers[damaged])),
        (f".{'c' * 64}", unfinished, layers[unfinished]),
    ):
        (packed / folder).mkdir(parents=True)
        (packed / folder / layer.rpartition(":")[2]).write_bytes(content)
    own = Packed(tmp_path / "home")
    source = Source(layers)
    remote = _Remote(source, ["there"], "digest", find_own=own.find_layer)
    assert await receive(sent, remote, tmp_path / "memory")
    assert {*source.layers_asked} == {damaged, unfinished, *others, sent.state.digest}
    assert own.find_layer("../../etc/passwd") is None


async def test_a_layer_that_is_not_what_its_digest_says_is_refused_with_the_node_that_sent_it(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(artifact_module, "_SPAN", MIB // 2)
    layers = Kept()
    sent = await pack_noise(TemplateStore(tmp_path / "templates"), 2, layers)
    layer = sent.memory[1].digest
    for wrong in (damage(layers[layer]), layers[layer][:-1], layers[sent.memory[0].digest]):
        remote = _Remote(Source(Kept({**layers, layer: wrong})), ["there"], "digest", find_own=lambda _: None)
        with pytest.raises(ArtifactError, match=f"node there.*{layer}"):
            await receive(sent, remote, tmp_path / "memory")
        (tmp_path / "memory").unlink()


async def test_a_node_that_sends_what_is_no_machine_is_named(tmp_path) -> None:
    places = Places(home=tmp_path / "home", runtime=tmp_path / "run")
    store = TemplateStore(places.templates)
    sent = await pack_noise(store, 1, Kept())
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
            find_own=lambda _: None,
        )
    assert store.list_names() == []
