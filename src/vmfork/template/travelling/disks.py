"""What a template's machines read beside RAM and state comes with it: files among the disks, each there once."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from vmfork.errors import ArtifactError, HostError, ImageCorrupt, StoreBusy
from vmfork.host.folders import make_private
from vmfork.host.lock import FileLock
from vmfork.host.thread import in_thread
from vmfork.image import DiskStore
from vmfork.travel.artifact import DISK_TYPE, list_disks
from vmfork.travel.files import fetch_file
from vmfork.travel.sending import tell_part
from vmfork.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from threading import Event

    from vmfork.config import Instance
    from vmfork.store import Manifest
    from vmfork.travel.artifact import Artifact
    from vmfork.travel.document import Blobs
    from vmfork.travel.files import SentFile

# Another process may fetch the same disk, of any size, over a slow line.
_FETCH_LIMIT_S = 3600.0


def check_sent(artifact: Artifact, *, of: str) -> None:
    """Raises `ArtifactError` when its machines read files that were not sent with it."""
    if list_disks(artifact.manifest) and not artifact.disks:
        raise ArtifactError(
            of,
            "its machines have disks that were not sent with it",
            hint="save or push it with this vmfork, where it was made",
        )


@asynccontextmanager
async def fetched_disks(artifact: Artifact, blobs: Blobs, *, of: str, instance: Instance) -> AsyncIterator[None]:
    """In the block the files that were sent with it are among the disks, whole, and nobody removes them.

    What is there already is not read. Of several that want the same, one fetches it. Raises `ArtifactError` when one is
    not what was sent, `HostError` when there is no space for it, and `StoreBusy`.
    """
    store = DiskStore(instance.places.disks)
    with ExitStack() as held:
        for file in artifact.disks:
            held.callback(os.close, await _fetch(file, blobs, store, of=of, instance=instance))
        yield


def hold_disks(m: Manifest, user: Path, instance: Instance) -> None:
    """What its machines read stays among the disks as long as something is at `user`. Raises `ImageCorrupt`."""
    store = DiskStore(instance.places.disks)
    for _, sha256 in list_disks(m):
        store.hold_for(user, sha256, image=m.image)


async def _fetch(file: SentFile, blobs: Blobs, store: DiskStore, *, of: str, instance: Instance) -> int:
    """A descriptor of the disk, which holds it."""
    make_private(store.folder)
    lock = await FileLock.acquire(store.lock_of_fetch(file.sha256), wait_s=_FETCH_LIMIT_S)
    if lock is None:
        raise StoreBusy(f"disk {file.sha256}", "another process", hint="it fetches the same: try again")
    with lock:
        try:
            return await _fetch_alone(file, blobs, store, of=of, instance=instance)
        finally:
            lock.path.unlink(missing_ok=True)


async def _fetch_alone(file: SentFile, blobs: Blobs, store: DiskStore, *, of: str, instance: Instance) -> int:
    try:
        return store.open(file.sha256, image=of)
    except ImageCorrupt:
        pass  # it is fetched
    _check_space(store.folder, file)
    tell, done = tell_part(f"fetching the disk {file.name!r} of {of}", instance), 0

    def told(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        tell(done / file.size_bytes)

    with store.fetching(file.sha256) as path:

        def work(stop: Event) -> bool:
            return fetch_file(file, blobs, path, DISK_TYPE, source=of, stop=stop, told=told)

        await in_thread(work)
        return await in_thread(lambda _: store.take_in(path, file.sha256, image=of))


def _check_space(folder: Path, file: SentFile) -> None:
    free = shutil.disk_usage(folder).free
    if free < file.size_bytes:
        raise HostError(
            f"no space for a disk: {folder} has {format_bytes(free)} free, it needs {format_bytes(file.size_bytes)}",
            hint="free some, or set VMFORK_HOME to a larger disk",
        )
