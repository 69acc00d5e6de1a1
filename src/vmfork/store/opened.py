"""A template that is opened: its manifest and two files, found whole, or named for what they are not."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmfork.errors import TemplateCorrupt, TemplateElsewhere, TemplateError, TemplateStale
from vmfork.host import facts
from vmfork.host.folders import NO_FILE, find_content, open_file, read_file
from vmfork.host.namespace import find_holder, mount_namespace
from vmfork.records import find_value
from vmfork.store.manifest import FILE_NAME, Manifest

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

# Lies in a generation's folder, under its tmpfs: who can read it does not see the tmpfs.
COVERED = "covered.json"


@dataclass(frozen=True, slots=True)
class OpenTemplate:
    """Owner of two descriptors, RAM and device state at its start, of a template that was whole when it was opened.

    They keep working when the template is replaced or removed.
    """

    manifest: Manifest
    memory_fd: int
    state_fd: int

    @classmethod
    def of(cls, manifest: Manifest, folder: Path) -> Self:
        """The files in the folder of that generation. Raises as `TemplateStore.open`."""
        _check_boot(manifest)
        with ExitStack() as on_failure:
            memory = _open_file(manifest.name, folder / "memory")
            on_failure.callback(os.close, memory)
            state = _open_file(manifest.name, folder / "state")
            on_failure.callback(os.close, state)
            _check_files(manifest, memory, state)
            on_failure.pop_all()
        return cls(manifest, memory, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.memory_fd)
        os.close(self.state_fd)


def read_manifest(name: str, folder: Path) -> Manifest:
    """The manifest in the folder of a generation. Raises as `TemplateStore.read_manifest`."""
    try:
        data = read_file(folder / FILE_NAME)
    except FileNotFoundError as error:
        _check_uncovered(name, folder)
        raise _name_failure(name, folder / FILE_NAME, error) from error
    except OSError as error:
        raise _name_failure(name, folder / FILE_NAME, error) from error
    manifest = Manifest.from_json(data, name=name)
    if (manifest.name, manifest.generation) != (name, folder.name):
        raise TemplateCorrupt(name, FILE_NAME, f"it is of template {manifest.name!r}, generation {manifest.generation}")
    return manifest


@dataclass(frozen=True, slots=True)
class Covered:
    """Where the tmpfs of a generation was mounted."""

    mount_namespace: str
    host_boot_id: str


def _check_uncovered(name: str, folder: Path) -> None:
    """Raises what became of the tmpfs that covered `folder`, where one did and is not seen from here."""
    covered = find_value(Covered, find_content(folder / COVERED))
    if covered is None:
        return
    if covered.host_boot_id != facts.boot_id():
        raise TemplateStale(name, "host.boot_id", covered.host_boot_id, facts.boot_id())
    if covered.mount_namespace == mount_namespace():
        raise TemplateCorrupt(name, folder.name, "its tmpfs was unmounted")
    if holder := find_holder(covered.mount_namespace):
        raise TemplateElsewhere(name, holder)
    raise TemplateCorrupt(name, folder.name, "its tmpfs went with the mount namespace that it was mounted in")


def _check_boot(manifest: Manifest) -> None:
    """Raises `TemplateStale` when the host was booted after the template was frozen.

    No file of a template is synced. Where it lies on a disk, a power failure leaves any part of it.
    """
    if manifest.host_boot_id != facts.boot_id():
        raise TemplateStale(manifest.name, "host.boot_id", manifest.host_boot_id, facts.boot_id())


def _open_file(name: str, path: Path) -> int:
    try:
        return open_file(path)
    except OSError as error:
        raise _name_failure(name, path, error) from error


def _name_failure(name: str, path: Path, error: OSError) -> TemplateError:
    if isinstance(error, FileNotFoundError):
        return TemplateCorrupt(name, path.name, "it is missing")
    if error.errno in NO_FILE:
        return TemplateCorrupt(name, path.name, "it is not a regular file of ours")
    return TemplateError(name, f"cannot read {path}: {error.strerror}")


def _check_files(manifest: Manifest, memory_fd: int, state_fd: int) -> None:
    for file, fd, want in (("memory", memory_fd, manifest.memory_bytes), ("state", state_fd, manifest.state_bytes)):
        have = os.fstat(fd).st_size
        if have != want:
            raise TemplateCorrupt(manifest.name, file, f"it has {have} bytes, {want} were frozen")
    digest = hashlib.sha256(os.pread(state_fd, manifest.state_bytes, 0)).hexdigest()
    if digest != manifest.state_sha256:
        raise TemplateCorrupt(manifest.name, "state", "its content is not what was frozen")
