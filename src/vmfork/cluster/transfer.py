"""Templates from node to node: packed once where they are, read layer by layer where they go, in force last.

```
HOME/cluster/DIGEST/     0700; a template's layers, named by the digest of their content, so that they are packed once
    artifact.json        written last
    HEX                  a layer
```
Whoever takes a template over reads each layer from a node that has it, or from what it packed itself where that is the
same, compares it with its digest, writes it into RAM, or into a disk that its machines read, and forgets it: no more
than a layer for each processor is in memory at once. A disk that lies among those of the node already is not read.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.cluster.eviction import ORIGIN
from vmfork.errors import (
    ArtifactError,
    ConfigError,
    ImageCorrupt,
    NodeLost,
    TemplateCorrupt,
    TemplateNotFound,
)
from vmfork.host.folders import list_folder, make_private, read_file, write_whole
from vmfork.host.thread import in_thread
from vmfork.image import DiskStore
from vmfork.oci.descriptor import digest_of as digest_of_content
from vmfork.records import read_record, write_record
from vmfork.store import TemplateStore
from vmfork.template.travelling.arrival import Target, put_in_force
from vmfork.travel.artifact import Artifact, list_disks
from vmfork.travel.pack import pack
from vmfork.travel.sending import tsc_of
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from threading import Event

    from vmfork.cluster.terms import Peers
    from vmfork.config import Instance, VMConfig
    from vmfork.oci.descriptor import Descriptor
    from vmfork.store import Manifest

_ARTIFACT = "artifact.json"
_DIGEST = re.compile("[0-9a-f]{64}")
_LAYER = re.compile("sha256:[0-9a-f]{64}")
# What layers of templates, those of their disks too, may take of the disk; the ones used least recently go first.
BUDGET_BYTES = 8 << 30
# Whoever takes a template over reads a layer, checks and writes it, and comes for the next, several at a time. Between
# two it may be as long as this; the first comes after its room was made.
SENDING_S = 60.0
# Each of these has a lane for each processor, and one of the few threads that the event loop has for all: where all of
# them wait for layers of others, no node can give any.
AT_ONCE = 2


class Packed:
    """Templates of this node, packed for others, in one folder."""

    def __init__(self, home: Path, *, budget_bytes: int = BUDGET_BYTES) -> None:
        self._folder = home / "cluster"
        self._budget_bytes = budget_bytes
        self._under_way: dict[str, asyncio.Task[bytes]] = {}
        self._at_once = asyncio.Semaphore(AT_ONCE)
        # By digest, when others asked for it last.
        self._asked_at: dict[str, float] = {}

    def is_sent(self, digest: str) -> bool:
        """Whether another node takes the template over now, or did not long ago."""
        return digest in self._under_way or self._asked_at.get(digest, -SENDING_S) + SENDING_S > time.monotonic()

    def find(self, digest: str) -> Artifact | None:
        """What the template travels as, where it was packed before."""
        try:
            return read_record(Artifact, read_file(self._folder / digest / _ARTIFACT))
        except (OSError, ValueError):
            return None

    def list_pieces(self, m: Manifest, digest: str, disks: DiskStore) -> dict[str, int]:
        """What the template of that manifest travels as: digests, and sizes in bytes.

        Its RAM is one piece, which no other template has, until it is packed. A disk always is one, by its content:
        where that is there already, for whichever template or image, it does not travel.
        """
        if (packed := self.find(digest)) is None:
            pieces = {digest: m.memory_allocated_bytes}
            for _, sha256 in list_disks(m):
                with suppress(OSError, ValueError):  # it is missing: whoever packs or forks the template is told
                    pieces[sha256] = disks.locate(sha256).stat().st_size
            return pieces
        return {
            **{each.digest: each.size_bytes for each in (*packed.memory, packed.state)},
            **{disk.sha256: sum(each.size_bytes for each in disk.layers) for disk in packed.disks},
        }

    async def pack(self, name: str, digest: str, *, generation: str, instance: Instance) -> bytes:
        """The artifact of the template, as JSON, its layers in the folder. Several who ask at once wait for one.

        Raises `TemplateNotFound` when that generation is gone, `TemplateCorrupt`, and `ImageCorrupt` when a disk is
        missing.
        """
        self._asked_at[digest] = time.monotonic()
        if digest not in self._under_way:
            task = asyncio.ensure_future(self._pack(name, digest, generation, instance))
            self._under_way[digest] = task
            task.add_done_callback(lambda _: self._under_way.pop(digest, None))
        return await asyncio.shield(self._under_way[digest])

    async def read(self, digest: str, layer: str) -> bytes:
        """A layer of the template. Raises `ArtifactError` when it is there no more, and for what names none."""
        if not (_DIGEST.fullmatch(digest) and _LAYER.fullmatch(layer)):  # a path into other folders is none
            raise ArtifactError(f"template {digest[:12]}", f"{layer[:80]!r} is no layer of it")
        path = self._folder / digest / layer.rpartition(":")[2]
        self._asked_at[digest] = time.monotonic()
        try:
            return await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise ArtifactError(f"template {digest[:12]}", f"its layer {layer} is missing") from error

    def find_layer(self, layer: str) -> bytes | None:
        """The content of a layer that was packed here, of whichever template, as it is on the disk."""
        if _LAYER.fullmatch(layer):
            for folder in list_folder(self._folder):
                if _DIGEST.fullmatch(folder.name):  # else it is not whole yet
                    with suppress(OSError):
                        return (folder / layer.rpartition(":")[2]).read_bytes()
        return None

    async def _pack(self, name: str, digest: str, generation: str, instance: Instance) -> bytes:
        if (known := self.find(digest)) is not None:
            await asyncio.to_thread(os.utime, self._folder / digest)
            return write_record(known)
        async with self._at_once:
            artifact = await self._pack_anew(name, digest, generation, instance)
        await asyncio.to_thread(self._make_room, digest)
        return write_record(artifact)

    async def _pack_anew(self, name: str, digest: str, generation: str, instance: Instance) -> Artifact:
        new = make_private(make_private(self._folder) / f".{digest}")
        try:
            with TemplateStore(instance.places.templates).open(name, generation=generation) as opened:
                tsc_khz = await asyncio.to_thread(tsc_of, opened)
                disks = DiskStore(instance.places.disks)

                def work(stop: Event) -> Artifact | None:
                    return pack(opened, _Folder(new), stop=stop, tell=lambda _: None, tsc_khz=tsc_khz, disks=disks)

                artifact = await in_thread(work)
            assert artifact is not None  # it was not stopped
            write_whole(new / _ARTIFACT, write_record(artifact))
            shutil.rmtree(self._folder / digest, ignore_errors=True)
            new.rename(self._folder / digest)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return artifact

    def _make_room(self, keep: str) -> None:
        """What was used least recently is gone, until the rest is within the budget; `keep` stays, and what is sent.

        So does what is packed just now. Of what a process left there that was killed meanwhile nothing need stay.
        """
        found = {}
        for path in list_folder(self._folder):
            if path.name.startswith(".") and path.name[1:] in self._under_way:
                continue
            with suppress(FileNotFoundError):  # it is packed anew just now
                found[path] = path.stat().st_mtime, sum(each.stat().st_size for each in list_folder(path))
        size = sum(each for _, each in found.values())
        for path in sorted(found, key=lambda path: found[path]):
            if size <= self._budget_bytes:
                return
            if path.name != keep and not self.is_sent(path.name):
                shutil.rmtree(path, ignore_errors=True)
                size -= found[path][1]


class _Folder:
    takes_several = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, descriptor: Descriptor, data: bytes, /) -> None:
        (self._folder / descriptor.digest.rpartition(":")[2]).write_bytes(data)


class _Remote:
    """The layers of a template of other nodes. Read in threads, while the loop carries the calls.

    What `find_own` finds, and is what its digest says, does not travel.
    """

    def __init__(
        self, peers: Peers, sources: Sequence[str], digest: str, *, find_own: Callable[[str], bytes | None]
    ) -> None:
        self._peers = peers
        self._sources = [*sources]
        self._digest = digest
        self._find_own = find_own
        self._loop = asyncio.get_running_loop()

    def read(self, descriptor: Descriptor, /) -> bytes:
        own = self._find_own(descriptor.digest)
        if own is not None and digest_of_content(own) == descriptor.digest:
            return own
        data = asyncio.run_coroutine_threadsafe(self._fetch(descriptor.digest), self._loop).result()
        if len(data) != descriptor.size_bytes or digest_of_content(data) != descriptor.digest:
            raise ArtifactError(f"node {self._sources[0]}", f"layer {descriptor.digest} is not what its digest says")
        return data

    async def _fetch(self, layer: str) -> bytes:
        while True:
            source = self._sources[0]
            try:
                found: bytes = await self._peers.call(source, "layer", self._digest, layer)
            except (NodeLost, ArtifactError):
                # Another has the same layers only once it has packed them.
                with suppress(ValueError):
                    self._sources.remove(source)
                if not self._sources:
                    raise
                await self._peers.call(self._sources[0], "artifact", self._digest)
            else:
                return found


async def take_over(
    name: str,
    digest: str,
    *,
    sources: Sequence[str],
    peers: Peers,
    instance: Instance,
    config: VMConfig,
    make_room: Callable[[str, int], Awaitable[None]],
    find_own: Callable[[str], bytes | None],
) -> None:
    """The template of that digest is in force here under `name`, taken from the first of `sources` that gives it.

    What its machines read beside its RAM is among the disks here, and stays as long as it does. What was in force under
    that name before is replaced, unless it was frozen later: then it stays. `make_room` is told the name, and the MiB
    that it needs; `find_own` gives layers by their digest that are here already.

    Raises `TemplateNotFound` when none has it, `TemplateCorrupt` and `ImageCorrupt` when the last that has it has it
    no more as it was frozen, `TemplateUnfit` when it does not fit this host, `ArtifactError` for
    content that is another, `NodeLost` when all ended, and `HostError` when memory, or space for a disk, is short. What
    was in force before still is then.
    """
    failed: Exception = TemplateNotFound(name)
    for at, source in enumerate(sources):
        try:
            data: bytes = await peers.call(source, "artifact", digest)
        except (NodeLost, TemplateNotFound, TemplateCorrupt, ImageCorrupt) as error:
            failed = error
            continue
        try:
            artifact = read_record(Artifact, data)
            artifact.check(artifact.layers)
        except (ValueError, ConfigError) as error:
            raise ArtifactError(f"node {source}", str(error)) from error
        await make_room(name, -(-artifact.manifest.memory_bytes // MIB))
        target = Target(instance=instance, config=config, name=name, replace_it=True, keep_later=True, wait_s=60.0)
        remote = _Remote(peers, sources[at:], digest, find_own=find_own)
        await put_in_force(artifact, remote, target, of=f"{ORIGIN}{source}")
        return
    raise failed
