"""What is known of an image, and its form on disk: `image.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping  # noqa: TC003 - a record's types are looked up when it is read
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.config.values import RootChoice  # noqa: TC001 - a record's types are looked up when it is read
from vmfork.records import list_fields, read_record, reads_also, write_record

if TYPE_CHECKING:
    from pathlib import Path

# 4 was of images without a disk and with /init as the first program, which a reader of it would take for granted.
FORMAT = 5

KERNEL_NAME = "kernel"
INITRAMFS_NAME = "initramfs"
RECORD_NAME = "image.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What `image.json` holds of an image.

    `digest` names the content, `recipe` what it was made of. `suite`, `requested` (packages asked for by name) and
    `bare` are those of its configuration. `packages` maps names to versions. Its guest loads the kernel modules in
    `boot_modules` when it finds their device. `unpacked_bytes` is what the files take in the guest's memory, in whole
    pages. `created_at` is ISO 8601, UTC. `root` is what was asked for. `disk_sha256` names the disk that its root is
    on (`disks.py`), of `disk_bytes`; empty where that lies in the initramfs. `init` is the guest's first program where
    it is not `/init`.

    `source` says where an imported image came from; it has no suite and no packages. `source_digest` names what was
    there: of a layout and a registry it is the digest of the manifest. `sources` are all that were found to be of this
    content. `environment`, `working_dir`, `user`,
    `entrypoint` and `command` are what it says of its programs; the first three are in force in its guests.
    """

    digest: str
    kernel_release: str
    kernel_sha256: str
    initramfs_sha256: str
    arch: str
    recipe: str
    suite: str
    requested: tuple[str, ...]
    bare: bool
    packages: Mapping[str, str]
    unpacked_bytes: int
    created_at: str
    kernel_bytes: int
    initramfs_bytes: int
    boot_modules: tuple[str, ...] = ()
    root: RootChoice = "auto"
    disk_sha256: str = ""
    disk_bytes: int = 0
    init: str = ""
    source: str = ""
    source_digest: str = ""
    sources: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_dir: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    format: int = field(default=FORMAT, metadata=reads_also(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(ImageRecord):
    """A kernel and an initramfs on disk, and what is in them.

    `name` is that of the link that led to it. `min_memory_mib` is the least guest RAM that unpacks and runs it. It is
    `None` until it is measured on this host, when a machine is first planned. The record does not hold it (see
    `least.py`).
    """

    name: str
    kernel: Path
    initramfs: Path
    min_memory_mib: int | None = None

    @property
    def size_bytes(self) -> int:
        """What its files take on disk."""
        return self.kernel_bytes + self.initramfs_bytes + self.disk_bytes

    @property
    def root_kind(self) -> str:
        """Where its root is: `memory` or `disk`."""
        return "disk" if self.disk_sha256 else "memory"


def name_content(kernel_sha256: str, initramfs_sha256: str, disk_sha256: str = "") -> str:
    """The digest of an image of these files."""
    digests = (kernel_sha256, initramfs_sha256, *filter(None, [disk_sha256]))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def encode_record(image: Image) -> bytes:
    """The image as the text of `image.json`."""
    return write_record(image, ImageRecord, indent=1) + b"\n"


def decode_record(text: bytes, *, name: str, folder: Path) -> Image:
    """The image that the record in `folder` tells of. Raises `ValueError`, saying what is wrong with the record."""
    try:
        record = read_record(ImageRecord, text)
    except ValueError as error:
        raise ValueError(f"{RECORD_NAME}: {error}") from error
    return Image(name=name, kernel=folder / KERNEL_NAME, initramfs=folder / INITRAMFS_NAME, **list_fields(record))
