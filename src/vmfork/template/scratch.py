"""What is on the disk that a machine writes to becomes its template's: a file among the disks, by its content."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import ImageCorrupt, TemplateCorrupt
from vmfork.host.folders import make_private
from vmfork.host.thread import in_thread
from vmfork.hypervisor.qemu import check_plain, write_empty
from vmfork.image import DiskStore
from vmfork.image.staging import open_staging
from vmfork.image.store import hash_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmfork.config import Instance, Places
    from vmfork.hypervisor.base import Hardware
    from vmfork.store import Manifest

_NAME = "disk"


@dataclass(frozen=True, slots=True)
class StagedDisk:
    """A file that takes what is on such a disk; `fd` is open for both. Where the machine has none, `fd` is `None`."""

    disks: DiskStore
    path: Path | None = None
    fd: int | None = None

    async def keep_for(self, user: Path, *, whose: str) -> str:
        """The file is among the disks, as long as something is at `user`; its digest, empty where there is no file."""
        path = self.path
        if path is None:
            return ""
        sha256 = await in_thread(lambda _: hash_file(path))
        self.disks.add(path, sha256)
        self.disks.hold_for(user, sha256, image=whose)
        return sha256


@contextmanager
def opened_disk(m: Manifest, places: Places) -> Iterator[int | None]:
    """What is on the disk of machines that are made from what it describes; `None` where they have none.

    Raises `TemplateCorrupt` when it is missing, or another.
    """
    if not m.disk_mib:
        yield None
        return
    with ExitStack() as opened:
        try:
            fd = opened.enter_context(DiskStore(places.disks).opened(m.disk_sha256, image=m.image))
            check_plain(fd, m.disk_mib)
        except (ImageCorrupt, ValueError) as error:
            raise TemplateCorrupt(m.name, "disk", str(error)) from error
        yield fd


@contextmanager
def staged_disk(hardware: Hardware, instance: Instance) -> Iterator[StagedDisk]:
    """A file for what is on the disk of a machine of `hardware`. It is gone with the block, unless it was kept."""
    disks = DiskStore(instance.places.disks)
    if not hardware.scratch_mib:
        yield StagedDisk(disks)
        return
    with ExitStack() as always:
        folder = always.enter_context(open_staging(make_private(disks.folder)))
        fd = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        always.callback(os.close, fd)
        # Between its being added and its being held it is nobody's: a sweep leaves what somebody has locked.
        fcntl.flock(fd, fcntl.LOCK_SH)
        write_empty(fd, hardware.scratch_mib)
        yield StagedDisk(disks, folder / _NAME, fd)
