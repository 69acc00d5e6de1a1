"""Images to files and registries, and from there into a store."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.config import check_import_name, check_name
from vmfork.errors import HostError, ImageCorrupt, ImageExists, StoreBusy
from vmfork.host.lock import FileLock
from vmfork.host.thread import in_thread, waking
from vmfork.host.whole import written_whole
from vmfork.image import Image, ImageStore
from vmfork.image.build import commit
from vmfork.image.record import RECORD_NAME, ImageRecord, decode_record
from vmfork.oci.archive import Archive
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.door import open_repository, parse_target
from vmfork.oci.manifest import MANIFEST_TYPE
from vmfork.oci.reference import Reference
from vmfork.records import write_record
from vmfork.travel.images.artifact import KIND, ImageArtifact
from vmfork.travel.images.pack import pack, unpack
from vmfork.travel.saved import Saved
from vmfork.travel.sending import tell_part
from vmfork.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path
    from threading import Event

    from vmfork.config import Instance
    from vmfork.oci.registry import Repository
    from vmfork.travel.document import Blobs

# Another process may look through an image of any size before it gives it a name.
_LOCK_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where an image comes: under `name`, by default its own. `replace_it`: whatever the name leads to."""

    instance: Instance
    name: str = ""
    replace_it: bool = False


async def save_image(name: str, path: Path, *, instance: Instance) -> Saved:
    """The image is in the file at `path`, a tar of an OCI layout; after an error what was there before is.

    Raises `ImageNotFound`, and `ImageCorrupt` when a file is not what was built.
    """
    store = ImageStore(instance.places.images)
    image = await asyncio.to_thread(store.open, name)
    tell = tell_part(f"saving {name!r}", instance, task="image")
    with written_whole(path) as file:
        archive = Archive(file)

        def work(stop: Event) -> Saved | None:
            artifact = pack(image, store.disks, archive, stop=stop, tell=tell)
            if artifact is None:
                return None
            config, manifest = artifact.to_documents()
            archive.put(manifest.config, config)
            named = archive.finish(manifest, tag=artifact.name)
            return Saved(digest=named.digest, size_bytes=artifact.size_bytes)

        saved = await in_thread(work)
        assert saved is not None  # it was not stopped
    return saved


async def load_image(path: Path, target: Target) -> Image:
    """The image in the file or folder at `path` is in the store, and the name leads to it.

    Raises `ArtifactError` when it is damaged or no image; `ImageExists` when the name leads to another. After any
    error, and on cancel, the name leads where it led before.
    """
    layout = await asyncio.to_thread(KIND.open, path)
    with layout:
        artifact = await asyncio.to_thread(KIND.read_layout, ImageArtifact, layout)
        return await _take_in(artifact, layout, target, source=str(path))


async def push_image(name: str, ref: str, *, plain_http: bool, instance: Instance) -> Saved:
    """The image is in the registry under that tag. What was there already was not sent again.

    Raises what `save_image` raises, `ConfigError` for what is no reference, and `HostError` for the registry, or where
    the extra `oci` is not installed; the tag is what it was then.
    """
    reference = parse_target(ref)
    store = ImageStore(instance.places.images)
    image = await asyncio.to_thread(store.open, name)
    tell = tell_part(f"pushing {name!r}", instance, task="image")

    with await asyncio.to_thread(open_repository, reference, plain_http=plain_http) as repository:

        def work(stop: Event) -> Saved | None:
            artifact = pack(image, store.disks, repository, stop=stop, tell=tell)
            if artifact is None:
                return None
            config, manifest = artifact.to_documents()
            repository.put(manifest.config, config)
            data = manifest.to_json()
            repository.put_manifest(reference.version, data)
            named = Descriptor.of(data, MANIFEST_TYPE)
            return Saved(digest=named.digest, size_bytes=artifact.size_bytes, sent_bytes=repository.sent_bytes)

        saved = await in_thread(work, interrupt=repository.close)
    assert saved is not None  # it was not stopped
    return saved


async def pull_image(ref: str, target: Target, *, plain_http: bool = False) -> Image:
    """The image in the registry is in the store, and the name leads to it. As `load_image` and `push_image`."""
    reference = Reference.parse(ref)

    def find(repository: Repository) -> ImageArtifact:
        data = repository.read_manifest(reference.version)
        return KIND.read(ImageArtifact, data, repository, source=str(reference))

    with await asyncio.to_thread(open_repository, reference, plain_http=plain_http) as repository:

        async def pull() -> Image:
            artifact = await in_thread(lambda _: find(repository))
            return await _take_in(artifact, repository, target, source=str(reference))

        return await waking(pull(), repository.close)


async def _take_in(artifact: ImageArtifact, blobs: Blobs, target: Target, *, source: str) -> Image:
    """The image that `artifact` describes is in the store. What is there already is not read."""
    name, instance = check_name(target.name or artifact.name, field="image"), target.instance
    if artifact.record.source:
        check_import_name(name)
    store, digest = ImageStore(instance.places.images), artifact.record.digest
    await asyncio.to_thread(store.make)
    _check_free(store, name, digest, target)
    lock = await FileLock.acquire(store.lock_path(digest), holder=f"process {os.getpid()}", wait_s=_LOCK_LIMIT_S)
    if lock is None:
        raise StoreBusy(f"image {name!r}")
    with lock:
        if not await in_thread(lambda _stop: _is_whole(artifact.record, store)):
            _check_space(store.folder, artifact)
            await asyncio.to_thread(store.sweep)
            with store.staging() as folder:
                await _fetch(artifact, blobs, folder / "image", store, source=source, instance=instance)
        _check_free(store, name, digest, target)  # another may have taken it meanwhile
        store.link(name, digest)
        return store.open(name)


async def _fetch(
    artifact: ImageArtifact, blobs: Blobs, built: Path, store: ImageStore, *, source: str, instance: Instance
) -> None:
    tell = tell_part(f"loading {artifact.name!r}", instance, task="image")

    def work(stop: Event) -> None:
        built.mkdir()
        if unpack(artifact, blobs, built, source=source, stop=stop, tell=tell):
            text = write_record(artifact.record, indent=1) + b"\n"
            (built / RECORD_NAME).write_bytes(text)
            commit(store, built, decode_record(text, name=artifact.name, folder=built))

    await in_thread(work)


def _is_whole(record: ImageRecord, store: ImageStore) -> bool:
    """Whether the image is here, every byte of it."""
    if store.find_checked(record.digest) is None:
        return False
    try:
        if record.disk_sha256:
            store.disks.verify(record.disk_sha256, image=record.digest)
    except ImageCorrupt:
        return False
    return True


def _check_free(store: ImageStore, name: str, digest: str, target: Target) -> None:
    """Raises `ImageExists` when the name leads to another image, and shall not be taken from it."""
    if not target.replace_it and store.find_digest(name) not in (None, digest):
        raise ImageExists(name)


def _check_space(folder: Path, artifact: ImageArtifact) -> None:
    free = shutil.disk_usage(folder).free
    if free < artifact.raw_bytes:
        raise HostError(
            f"no space for the image: {folder} has {format_bytes(free)} free, it needs "
            f"{format_bytes(artifact.raw_bytes)}",
            hint="free some, or set VMFORK_HOME to a larger disk",
        )
