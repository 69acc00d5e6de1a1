"""From a template to a file that can be sent."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING

from vmfork.host.thread import in_thread
from vmfork.host.tsc import measure_tsc_khz
from vmfork.host.whole import written_whole
from vmfork.image import DiskStore
from vmfork.machine.board import needs_tsc
from vmfork.oci.archive import Archive
from vmfork.progress import Progress
from vmfork.store import TemplateStore
from vmfork.travel.fit import hardware_of
from vmfork.travel.pack import pack
from vmfork.travel.saved import Saved

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path
    from threading import Event

    from vmfork.config import Instance
    from vmfork.store import OpenTemplate
    from vmfork.travel.artifact import Artifact


async def save_template(
    name: str,
    path: Path,
    *,
    generation: str,
    instance: Instance,
    durable: bool = False,
    appearing: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Saved:
    """The generation is in the file at `path`, a tar of an OCI layout; after an error what was there before is.

    A `durable` one is on the disk, for this host alone: what its machines read beside is not in it, and need not be.
    The file takes its name inside `appearing` (see `written_whole`).

    Raises `TemplateNotFound` when the generation is gone, `TemplateCorrupt` when its RAM or a disk is not what was
    frozen, and `ImageCorrupt` when the latter is missing.
    """
    tell = tell_part(f"saving {name!r}", instance)
    with TemplateStore(instance.places.templates).open(name, generation=generation) as opened:
        disks = None if durable else DiskStore(instance.places.disks)
        tsc_khz = await asyncio.to_thread(tsc_of, opened)
        with written_whole(path, durable=durable, appearing=appearing) as file:
            archive = Archive(file)

            def work(stop: Event) -> Saved | None:
                artifact = pack(opened, archive, stop=stop, tell=tell, tsc_khz=tsc_khz, disks=disks)
                return None if artifact is None else _finish(archive, artifact)

            saved = await in_thread(work)
            assert saved is not None  # it was not stopped
    return saved


def tell_part(step: str, instance: Instance, *, task: str = "template") -> Callable[[float], None]:
    """Tells the listener, on the event loop, which part is done. May be called in a thread."""
    loop = asyncio.get_running_loop()

    def tell(fraction: float) -> None:
        loop.call_soon_threadsafe(instance.progress, Progress(task=task, step=step, fraction=fraction))

    return tell


def tsc_of(opened: OpenTemplate) -> int:
    """How fast the processor counts by which the guest keeps time; 0 where it has another clock."""
    return measure_tsc_khz() if needs_tsc(hardware_of(opened.manifest)) else 0


def _finish(archive: Archive, artifact: Artifact) -> Saved:
    config, manifest = artifact.to_documents()
    archive.put(manifest.config, config)
    named = archive.finish(manifest, tag=artifact.manifest.name)
    return Saved(digest=named.digest, size_bytes=artifact.size_bytes)
