"""Templates to a registry, and from one."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError, TemplateError
from vmfork.host.thread import in_thread, waking
from vmfork.image import DiskStore
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.door import open_repository
from vmfork.oci.manifest import MANIFEST_TYPE
from vmfork.store import TemplateStore
from vmfork.template.travelling.arrival import put_in_force
from vmfork.travel.artifact import KIND, Artifact
from vmfork.travel.pack import Base, pack
from vmfork.travel.saved import Saved
from vmfork.travel.sending import tell_part, tsc_of

if TYPE_CHECKING:
    from threading import Event

    from vmfork.config import Instance
    from vmfork.oci.reference import Reference
    from vmfork.oci.registry import Repository
    from vmfork.store import Manifest, OpenTemplate
    from vmfork.template.source import Source
    from vmfork.template.travelling.arrival import Target


async def push_template(
    name: str, reference: Reference, *, generation: str, plain_http: bool, instance: Instance
) -> Saved:
    """The generation is in the registry under that tag. What was there already was not sent again.

    Where a template that it descends from is here, and in the repository, its layers lie over that one's. Raises what
    `save_template` raises, and `HostError` for the registry; the tag is what it was then.
    """
    tell = tell_part(f"pushing {name!r}", instance)
    store, disks = TemplateStore(instance.places.templates), DiskStore(instance.places.disks)
    with ExitStack() as opened:
        own = opened.enter_context(store.open(name, generation=generation))
        tsc_khz = await asyncio.to_thread(tsc_of, own)

        repository = opened.enter_context(await asyncio.to_thread(open_repository, reference, plain_http=plain_http))

        def work(stop: Event) -> Saved | None:
            base = _find_base(own.manifest, repository, store, opened)
            artifact = pack(own, repository, stop=stop, tell=tell, tsc_khz=tsc_khz, base=base, disks=disks)
            return None if artifact is None else _finish(repository, artifact)

        saved = await in_thread(work, interrupt=repository.close)
        assert saved is not None  # it was not stopped
    return saved


async def pull_template(reference: Reference, target: Target, *, plain_http: bool) -> Source:
    """The template in the registry is in force. As `arrival.load_template`."""
    with await asyncio.to_thread(open_repository, reference, plain_http=plain_http) as repository:

        async def pull() -> Source:
            artifact = await in_thread(lambda _: _read(repository, repository.read_manifest(reference.version)))
            return await put_in_force(artifact, repository, target, of=str(reference))

        return await waking(pull(), repository.close)


def _read(repository: Repository, manifest: bytes) -> Artifact:
    return KIND.read(Artifact, manifest, repository, source=str(repository.reference))


def _find_base(m: Manifest, repository: Repository, store: TemplateStore, opened: ExitStack) -> Base | None:
    """The nearest template that it descends from which is here, and in the repository, and can carry it."""
    for ancestor in reversed(m.ancestors):
        name, _, generation = ancestor.partition("/")
        parent = _open(store, name, generation, opened)
        if parent is None or (data := repository.find_manifest(_tag_of(parent.manifest))) is None:
            continue
        with suppress(ArtifactError):
            artifact = _read(repository, data)
            is_same = artifact.manifest.memory_sha256 == parent.manifest.memory_sha256
            if is_same and artifact.can_carry(m) and all(map(repository.has, artifact.layers)):
                return Base(artifact.memory, parent.memory_fd)
    return None


def _open(store: TemplateStore, name: str, generation: str, opened: ExitStack) -> OpenTemplate | None:
    try:
        return opened.enter_context(store.open(name, generation=generation))
    except TemplateError:  # it is gone, or replaced
        return None


def _finish(repository: Repository, artifact: Artifact) -> Saved:
    config, manifest = artifact.to_documents()
    repository.put(manifest.config, config)
    data = manifest.to_json()
    repository.put_manifest(_tag_of(artifact.manifest), data)
    if not repository.reference.is_digest:
        repository.put_manifest(repository.reference.version, data)
    named = Descriptor.of(data, MANIFEST_TYPE)
    return Saved(digest=named.digest, size_bytes=artifact.size_bytes, sent_bytes=repository.sent_bytes)


def _tag_of(m: Manifest) -> str:
    """What a template with this RAM is found by, whatever it is called: its children are told by what differs."""
    return f"vmfork-{m.memory_sha256[:32]}"
