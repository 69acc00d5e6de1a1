"""What an image looks like on its way: a configuration, and its files in layers (docs/reference/artifact.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfork.config import ImageConfig, check_name
from vmfork.image import disk
from vmfork.image.recipe import ARCH
from vmfork.image.record import INITRAMFS_NAME, KERNEL_NAME, ImageRecord, name_content
from vmfork.oci.descriptor import Descriptor
from vmfork.oci.manifest import Manifest
from vmfork.records import VERSION, write_record
from vmfork.travel.document import Kind, check_layers, count_bytes
from vmfork.travel.files import SentFile  # noqa: TC001 - a record's types are looked up when it is read

if TYPE_CHECKING:
    from collections.abc import Sequence

TYPE = "application/vnd.vmfork.image.v1"
KIND = Kind("image", TYPE)
CONFIG_TYPE = "application/vnd.vmfork.image.config.v1+json"
FILE_TYPE = "application/vnd.vmfork.image.file.v1+zstd"

_HEX = re.compile(r"[0-9a-f]{64}")
_RELEASE = re.compile(r"\d+\.\d+[A-Za-z0-9.+~_-]{0,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageArtifact:
    """The configuration of an artifact: the image's name where it was sent from, its record, its files."""

    name: str
    record: ImageRecord
    files: tuple[SentFile, ...]
    format: int = field(default=1, metadata=VERSION)

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return tuple(each.describe(FILE_TYPE) for file in self.files for each in file.layers)

    @property
    def size_bytes(self) -> int:
        """Of all its layers as they travel, each counted once."""
        return count_bytes(self.layers)

    @property
    def raw_bytes(self) -> int:
        """Of its files."""
        return sum(file.size_bytes for file in self.files)

    def to_documents(self) -> tuple[bytes, Manifest]:
        """Its configuration, and the manifest that names that and the layers."""
        data, record = write_record(self), self.record
        annotations = {
            "org.opencontainers.image.title": self.name,
            "org.opencontainers.image.created": record.created_at,
            **{f"io.vmfork.image.{key}": getattr(record, key) for key in ("digest", "recipe", "kernel_release")},
        }
        config = Descriptor.of(data, CONFIG_TYPE)
        return data, Manifest(config=config, layers=self.layers, artifact_type=TYPE, annotations=annotations)

    def check(self, layers: Sequence[Descriptor]) -> None:
        """Raises `ValueError` or `ConfigError` when it is no image of ours, or its layers are not `layers`."""
        check_layers(self.layers, layers)
        check_name(self.name)
        record = self.record
        if record.arch != ARCH:
            raise ValueError(f"its guests have {record.arch!r} processors, and this host runs {ARCH}")
        if record.suite or record.requested:  # else it was made of no packages
            ImageConfig(suite=record.suite, packages=record.requested, bare=record.bare)
        if _HEX.fullmatch(record.recipe) is None or _RELEASE.fullmatch(record.kernel_release) is None:
            raise ValueError(f"its recipe is {record.recipe!r} and its kernel {record.kernel_release!r}")
        if record.digest != name_content(record.kernel_sha256, record.initramfs_sha256, record.disk_sha256):
            raise ValueError("it has another digest than its files")
        if [(file.name, file.size_bytes, file.sha256) for file in self.files] != list_files(record):
            raise ValueError("its files are not those of its record")
        for file in self.files:
            file.check()


def list_files(record: ImageRecord) -> list[tuple[str, int, str]]:
    """Name, size and SHA-256 of each file of the image."""
    files = [
        (KERNEL_NAME, record.kernel_bytes, record.kernel_sha256),
        (INITRAMFS_NAME, record.initramfs_bytes, record.initramfs_sha256),
    ]
    return [*files, (disk.NAME, record.disk_bytes, record.disk_sha256)] if record.disk_sha256 else files
