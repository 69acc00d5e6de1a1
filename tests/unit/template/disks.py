"""Disks that templates read, in the store of an instance, without machines."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from tests.unit.template.sparse import find_traits
from vmfork.hypervisor.qemu import write_empty
from vmfork.image import DiskStore
from vmfork.machine.traits import DISK, SCRATCH

if TYPE_CHECKING:
    from vmfork.config import Places

SCRATCH_MIB = 64


def add_disk(places: Places, content: bytes) -> str:
    """A disk of that content is among those of the instance."""
    places.disks.mkdir(parents=True, exist_ok=True)
    path = places.disks / "new"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    DiskStore(places.disks).add(path, sha256)
    return sha256


def empty_image() -> bytes:
    fd = os.memfd_create("image")
    try:
        write_empty(fd, SCRATCH_MIB)
        return os.pread(fd, os.fstat(fd).st_size, 0) + b"what was written"
    finally:
        os.close(fd)


async def find_disk_fields(places: Places, root: bytes) -> dict[str, Any]:
    """What a manifest says whose root is on that disk, and whose machines have one of their own; both are there."""
    return {
        "traits": {**await find_traits(), DISK: add_disk(places, root), SCRATCH: str(SCRATCH_MIB)},
        "disk_mib": SCRATCH_MIB,
        "disk_sha256": add_disk(places, empty_image()),
        "format": 4,
    }


def list_disks(places: Places) -> set[str]:
    """What lies among the disks, whatever it is."""
    return {path.name for path in places.disks.iterdir()} - {"lock"} if places.disks.exists() else set()
