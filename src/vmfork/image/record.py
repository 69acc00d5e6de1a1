"""What is known of an image, and its form on disk: `image.json`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FORMAT = 4

KERNEL_NAME = "kernel"
INITRAMFS_NAME = "initramfs"
RECORD_NAME = "image.json"


class RecordError(ValueError):
    """The record does not say what a record must say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A kernel and an initramfs on disk, and what is in them.

    `digest` names the content, `recipe` what it was made of; of that, `suite`, `requested` (packages asked for by
    name) and `bare` are the configuration's. `packages` maps names to versions. `boot_modules` are the kernel modules
    that its guest loads where the device is. `unpacked_bytes` is what the files
    take in the guest's memory, in whole pages; `size_bytes` what both files take on disk. `created_at` is ISO 8601,
    UTC. `min_memory_mib` is the least guest RAM that unpacks and runs it. It is measured on this host when a machine
    is first planned, and `None` until then; the record does not hold it (see `least.py`).
    """

    name: str
    digest: str
    kernel: Path
    initramfs: Path
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
    min_memory_mib: int | None = None

    @property
    def size_bytes(self) -> int:
        return self.kernel_bytes + self.initramfs_bytes


# Field of the record -> its type; the paths follow from the folder, the name from the link that led there.
_FIELDS: dict[str, type] = {
    "digest": str,
    "kernel_release": str,
    "kernel_sha256": str,
    "initramfs_sha256": str,
    "arch": str,
    "recipe": str,
    "suite": str,
    "requested": list,
    "bare": bool,
    "packages": dict,
    "unpacked_bytes": int,
    "created_at": str,
    "kernel_bytes": int,
    "initramfs_bytes": int,
}


def name_content(kernel_sha256: str, initramfs_sha256: str) -> str:
    """The digest of an image of these files."""
    return hashlib.sha256(f"{kernel_sha256} {initramfs_sha256}".encode()).hexdigest()


def encode_record(image: Image) -> bytes:
    """The image as the text of `image.json`."""
    fields = {name: getattr(image, name) for name in _FIELDS}
    fields |= {"packages": dict(image.packages), "boot_modules": list(image.boot_modules)}
    return (json.dumps({"format": FORMAT, **fields}, indent=1, sort_keys=True) + "\n").encode()


def decode_record(text: bytes, *, name: str, folder: Path) -> Image:
    """The image that the record in `folder` tells of; `RecordError` says what is wrong with it."""
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{RECORD_NAME} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RecordError(f"{RECORD_NAME} is not an object")
    if fields.get("format") != FORMAT:
        raise RecordError(f"{RECORD_NAME} has format {fields.get('format')!r}, this vmfork reads {FORMAT}")
    checked: dict[str, Any] = {field: _get_field(fields, field, kind) for field, kind in _FIELDS.items()}
    checked["requested"] = tuple(map(str, checked["requested"]))
    if "boot_modules" in fields:
        checked["boot_modules"] = tuple(map(str, _get_field(fields, "boot_modules", list)))
    return Image(name=name, kernel=folder / KERNEL_NAME, initramfs=folder / INITRAMFS_NAME, **checked)


def _get_field(fields: dict[str, Any], field: str, kind: type) -> Any:
    value = fields.get(field)
    if type(value) is not kind:
        raise RecordError(f"{RECORD_NAME}: {field} is missing or not of type {kind.__name__}")
    return value
