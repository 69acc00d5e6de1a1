"""Templates on disk: staged, committed by one atomic step, opened under a shared lock, swept when nobody owns them."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmfork.config import NAME, check_name
from vmfork.errors import (
    Closed,
    HostError,
    StoreBusy,
    TemplateCorrupt,
    TemplateElsewhere,
    TemplateError,
    TemplateExists,
    TemplateNotFound,
    TemplateStale,
)
from vmfork.host import facts
from vmfork.host.folders import (
    is_private_folder,
    link_atomically,
    list_folder,
    list_ours,
    make_private,
    read_file,
    write_whole,
)
from vmfork.host.lock import FileLock, is_locked, read_holder
from vmfork.host.namespace import find_holder, is_private, mount_namespace
from vmfork.host.tmpfs import mount_tmpfs, unmount
from vmfork.owner import Owner
from vmfork.records import read_record, write_record
from vmfork.store.manifest import FILE_NAME, Manifest
from vmfork.store.ram_file import create_ram_file, digest_open_ram
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_log = logging.getLogger("vmfork")

_BUILDING, _LOCK, _CURRENT = "building", "lock", "current"
_GENERATION = re.compile(r"[0-9a-f]{16}")
# A link or file on its way to its name (host/folders.py).
_TEMPORARY = re.compile(r"\.[a-z.]+\.[0-9a-f]{8}")
# Lies in a generation's folder, under its tmpfs: who can read it does not see the tmpfs.
_COVERED = "covered.json"
# Device state is 60 to 80 KB; this much is kept free for it beside the RAM.
STATE_HEADROOM = 8 * MIB
# Whoever holds the lock does so to read a manifest and open two files, or to swap a link.
_LOCK_WAIT_S = 10.0
# A fork waits this long for a link to be swapped. It blocks the event loop meanwhile; the holder of the lock does not
# need the loop, so this cannot deadlock.
_SHARED_WAIT_S, _SHARED_PAUSE_S = 1.0, 0.001
# Any command sweeps, and holds `building` meanwhile. A build that meets it waits this long rather than fail.
_SWEEP_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class OpenTemplate:
    """Owner of two descriptors, RAM and device state at its start, of a template that was whole when it was opened.

    They keep working when the template is replaced or removed.
    """

    manifest: Manifest
    memory_fd: int
    state_fd: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.memory_fd)
        os.close(self.state_fd)


class TemplateStore:
    """The templates below one folder.

    ```
    TEMPLATES/NAME/          0700
        lock                 flock: shared while a fork opens files, exclusive to publish or remove; its time is that of
                             the last use
        building             flock: held by the one process that builds or removes this template; says who
        GENERATION/          a tmpfs of its own where we may mount one, else a plain folder
            memory           RAM, sparse
            state            device state without RAM
            covered.json     under that tmpfs, so not seen where the tmpfs is: in which mount namespace it is
            manifest.json    written last
        current              link to the generation in force; swapped atomically
    ```
    A generation that `current` does not name belongs to whoever holds `building`; when nobody does, it is waste.
    Whatever else lies there is a stranger's, and left alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_names(self) -> list[str]:
        """Names of all templates that were published, sorted. Whatever lost its owner is swept first."""
        self.sweep()
        return sorted(path.name for path in self._folders() if (path / _CURRENT).is_symlink())

    def list_made_of(self, image: str) -> list[str]:
        """Names of the templates that were booted from the image of that name, as far as they can be read, sorted."""
        found = []
        for name in self.list_names():
            with suppress(TemplateNotFound, TemplateCorrupt, TemplateElsewhere, TemplateStale, StoreBusy):
                if self.read_manifest(name).image == image:
                    found.append(name)
        return found

    def find_generation(self, name: str) -> str | None:
        """The generation in force under `name`, or `None`. One system call: nothing is opened or checked."""
        try:
            return os.readlink(self.folder / check_name(name) / _CURRENT)
        except OSError:
            return None

    def note_use(self, name: str) -> None:
        """The template was used now. One system call."""
        with suppress(OSError):  # it was removed meanwhile
            os.utime(self.folder / name / "lock")

    def find_last_use(self, name: str) -> float:
        """When the template was last forked, or else made, in seconds since 1970; 0 where it is gone."""
        try:
            return (self.folder / name / "lock").stat().st_mtime
        except OSError:
            return 0.0

    def read_manifest(self, name: str) -> Manifest:
        """The manifest of the template in force.

        Raises `TemplateNotFound`, `TemplateCorrupt`, `TemplateElsewhere`, `TemplateStale` (format).
        """
        with self._shared(name) as folder:
            return _read_manifest(name, folder)

    def open(self, name: str, *, generation: str = "") -> OpenTemplate:
        """The template's files, found whole: sizes of both and the digest of the state match the manifest.

        Raises `TemplateNotFound`, `TemplateCorrupt`, `TemplateElsewhere`, and `TemplateStale` for another format and
        when the host was booted since. With `generation` it also raises `TemplateNotFound` when another is in force
        now.
        """
        with self._shared(name) as folder, ExitStack() as on_failure:
            manifest = _read_manifest(name, folder)
            if generation and manifest.generation != generation:
                raise TemplateNotFound(name)
            _check_boot(manifest)
            memory = _open_file(name, folder / "memory")
            on_failure.callback(os.close, memory)
            state = _open_file(name, folder / "state")
            on_failure.callback(os.close, state)
            _check_files(manifest, memory, state)
            on_failure.pop_all()
        return OpenTemplate(manifest, memory, state)

    async def stage(self, name: str, *, memory_bytes: int, replace: bool = False, wait_s: float = 0.0) -> Staging:
        """An empty generation of `name` that only we see, with room for `memory_bytes` of RAM.

        Raises `TemplateExists` without `replace`, `StoreBusy` when another process still builds or removes it after
        `wait_s`, and `HostError` when memory is short. Nothing is left after any of them.
        """
        check_name(name)
        lock = await self._claim(name, wait_s=wait_s)
        folder = lock.path.parent
        with ExitStack() as on_failure:
            on_failure.callback(lock.close)
            on_failure.callback(_remove_if_empty, folder)
            _sweep_generations(folder)
            if not replace and (folder / _CURRENT).is_symlink():
                raise TemplateExists(name)
            staging = Staging(name, folder, lock, memory_bytes=memory_bytes)
            on_failure.pop_all()
        return staging

    async def remove(self, name: str) -> None:
        """No template of that name exists; forks made from it run on. Raises `TemplateNotFound`, `StoreBusy`."""
        check_name(name)
        folder = self.folder / name
        _mend_locks(folder)
        if not (folder / _CURRENT).is_symlink():
            self.sweep()
            raise TemplateNotFound(name)
        try:
            building = await self._lock_building(folder)
        except FileNotFoundError as error:  # another has just removed it
            raise TemplateNotFound(name) from error
        with building, await _lock_exclusively(folder):
            try:
                (folder / _CURRENT).unlink()
            except FileNotFoundError as error:  # another has just removed it, and we made its locks anew
                raise TemplateNotFound(name) from error
            finally:
                _sweep_generations(folder)
                _remove_if_empty(folder)

    def verify(self, name: str) -> Manifest:
        """The manifest, after every byte of the template was compared with it.

        Raises `TemplateCorrupt`, naming the file that differs.
        """
        with self.open(name) as opened:
            found = digest_open_ram(opened.memory_fd)
            if found.sha256 != opened.manifest.memory_sha256:
                raise TemplateCorrupt(name, "memory", "its content is not what was frozen")
            return opened.manifest

    def find_waste(self) -> list[Path]:
        """Generations that no live process builds and no link names, at this moment: what a sweep would remove."""
        return [
            path for folder in self._folders() if not is_locked(folder / _BUILDING) for path in _find_unnamed(folder)
        ]

    def find_strangers(self) -> list[Path]:
        """What lies beside the templates, or in the folder of one, and is not ours. Nothing of ours touches it."""
        ours = self._folders()
        inside = [path for folder in ours for path in list_folder(folder) if not _is_known(path)]
        return sorted({*list_folder(self.folder)} - {*ours}) + inside

    def sweep(self) -> list[str]:
        """Generations that no live process builds and no link names are gone. Gives what was removed.

        So are empty folders: one was made, and its maker killed, before there was a lock in it. Strangers' things stay.
        """
        for path in list_folder(self.folder):
            if NAME.fullmatch(path.name) and is_private_folder(path):
                with suppress(OSError):  # there is something in it
                    path.rmdir()
        removed = []
        for folder in self._folders():
            lock = None
            with suppress(OSError):  # removed just now, by its owner or another sweep
                lock = FileLock.try_acquire(folder / _BUILDING, holder=f"process {os.getpid()}", must_exist=True)
            if lock is None:
                continue
            with lock:
                removed += _sweep_generations(folder)
                _remove_if_empty(folder)
        return removed

    def _folders(self) -> list[Path]:
        return list_ours(self.folder, NAME, marker=_BUILDING)

    async def _claim(self, name: str, *, wait_s: float) -> FileLock:
        """The lock `building`, held, of a folder that exists: its former holder may have removed the folder."""
        while True:
            folder = make_private(make_private(self.folder) / name)
            with suppress(FileNotFoundError):
                return await self._lock_building(folder, wait_s=wait_s)

    async def _lock_building(self, folder: Path, *, wait_s: float = 0.0) -> FileLock:
        path = folder / _BUILDING
        lock = await FileLock.acquire(path, holder=f"process {os.getpid()}", wait_s=max(wait_s, _SWEEP_WAIT_S))
        if lock is None:
            raise StoreBusy(f"template {folder.name!r}", read_holder(path))
        return lock

    def _shared(self, name: str) -> _SharedFolder:
        check_name(name)
        return _SharedFolder(name, self.folder / name)


class _SharedFolder:
    """The folder of the generation in force. Nobody can remove it inside the block."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._lock: FileLock | None = None

    def __enter__(self) -> Path:
        if not (self._folder / _CURRENT).is_symlink():
            raise TemplateNotFound(self._name)
        try:
            self._lock = _lock_shared(self._folder)
        except FileNotFoundError as error:
            raise TemplateNotFound(self._name) from error
        if self._lock is None:
            raise StoreBusy(f"template {self._name!r}", read_holder(self._folder / _BUILDING))
        try:
            return self._folder / os.readlink(self._folder / _CURRENT)
        except OSError as error:
            self._lock.close()
            raise TemplateNotFound(self._name) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()


class Staging(Owner):
    """Owner of a generation that is being made. Closing it uncommitted leaves nothing."""

    def __init__(self, name: str, folder: Path, lock: FileLock, *, memory_bytes: int) -> None:
        self.name = name
        self.generation = secrets.token_hex(8)
        self._folder = folder
        self._path = folder / self.generation
        self._lock = lock
        self._allot(memory_bytes)

    def enlarge(self, memory_bytes: int) -> None:
        """There is room for `memory_bytes` of RAM. What was written before is gone where there was less.

        Raises `HostError` when memory is short. Close it then.
        """
        if memory_bytes > self.memory_bytes:
            os.close(self.memory_fd)
            _remove_generation(self._path)
            self._allot(memory_bytes)

    def _allot(self, memory_bytes: int) -> None:
        self.memory_fd = -1
        self.memory_bytes = memory_bytes
        need = memory_bytes + STATE_HEADROOM
        _check_memory(need)
        self._path.mkdir(mode=0o700)
        try:
            covered = self._path / _COVERED
            write_whole(covered, write_record(_Covered(mount_namespace(), facts.boot_id())))
            if not mount_tmpfs(self._path, size_bytes=need):
                covered.unlink()
                _check_space(self._path, need)
            self.memory_fd = create_ram_file(self._path / "memory", size_bytes=memory_bytes)
        except BaseException:
            _remove_generation(self._path)
            raise

    @property
    def memory_path(self) -> Path:
        return self._path / "memory"

    @property
    def state_path(self) -> Path:
        return self._path / "state"

    async def commit(self, manifest: Manifest) -> None:
        """The generation is the one in force, the former is gone, and the lock is free.

        The manifest is written last and the link swapped under the exclusive lock: at every moment a fork finds the old
        template or the new one, whole.
        """
        if self._lock.closed:
            raise Closed(f"the staging of template {self.name!r}")
        write_whole(self._path / FILE_NAME, manifest.to_json())
        with await _lock_exclusively(self._folder):
            link_atomically(self._folder / _CURRENT, self.generation)
        if is_private(self._path):
            _log.warning(
                "note: template %r is seen in this mount namespace alone, and goes with its last process", self.name
            )
        await self.aclose()

    async def aclose(self) -> None:
        """The lock is free, and no generation is left but the one in force, if any."""
        if self._lock.closed:
            return
        with self._lock:
            if self.memory_fd >= 0:
                os.close(self.memory_fd)
            _sweep_generations(self._folder)
            _remove_if_empty(self._folder)


def _check_memory(need: int) -> None:
    """Raises `HostError`, with the arithmetic, when `need` bytes of memory cannot be had.

    A guest may come to touch all its RAM, so all of it must be there, although the file is sparse at first.
    """
    available = facts.available_memory_bytes()
    if need > available:
        raise HostError(
            f"not enough memory: the template needs {format_mib(need // MIB)}, "
            f"{format_mib(available // MIB)} can be had",
            hint="give the VM less memory, stop something else, or raise the memory limit of the container or service",
        )


def _check_space(folder: Path, need: int) -> None:
    free = facts.free_space_bytes(folder)
    if need > free:
        raise HostError(
            f"not enough space: the template needs {format_mib(need // MIB)}, "
            f"{folder} has {format_mib(free // MIB)} free",
            hint="give the VM less memory, or set VMFORK_RUNTIME_DIR to a larger tmpfs",
        )


def _lock_shared(folder: Path) -> FileLock | None:
    """The lock under which files are opened, or `None` when it was held exclusively all the while."""
    end = time.monotonic() + _SHARED_WAIT_S
    while (lock := FileLock.try_acquire(folder / _LOCK, shared=True)) is None and time.monotonic() < end:
        time.sleep(_SHARED_PAUSE_S)
    return lock


async def _lock_exclusively(folder: Path) -> FileLock:
    lock = await FileLock.acquire(folder / _LOCK, wait_s=_LOCK_WAIT_S)
    if lock is None:
        raise StoreBusy(f"template {folder.name!r}", "forks that are just being made")
    return lock


def _read_manifest(name: str, folder: Path) -> Manifest:
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
class _Covered:
    """Where the tmpfs of a generation was mounted."""

    mount_namespace: str
    host_boot_id: str


def _check_uncovered(name: str, folder: Path) -> None:
    """Raises what became of the tmpfs that covered `folder`, where one did and is not seen from here."""
    try:
        covered = read_record(_Covered, read_file(folder / _COVERED))
    except (OSError, ValueError):
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
        # O_NONBLOCK: a FIFO in its place would keep us for ever. It changes nothing for a file.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _name_failure(name, path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise TemplateCorrupt(name, path.name, "it is not a regular file")
    return fd


def _name_failure(name: str, path: Path, error: OSError) -> TemplateError:
    if isinstance(error, FileNotFoundError):
        return TemplateCorrupt(name, path.name, "it is missing")
    if error.errno in (errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENXIO):  # what read_file refuses
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


def _sweep_generations(folder: Path) -> list[str]:
    """Only the generation in force is left of ours. The caller holds `building`."""
    removed = []
    for path in _find_unnamed(folder):
        _remove_generation(path)
        removed.append(str(path))
    for path in list_folder(folder):
        if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)  # its writer died before its rename
    return removed


def _find_unnamed(folder: Path) -> list[Path]:
    """The generations in a template's folder but for the one in force."""
    try:
        kept = os.readlink(folder / _CURRENT)
    except OSError:
        kept = ""
    return [path for path in list_folder(folder) if path.name != kept and _is_generation(path)]


def _is_generation(path: Path) -> bool:
    return _GENERATION.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def _is_known(path: Path) -> bool:
    """Whether what lies in a template's folder is part of it."""
    return (
        path.name in (_BUILDING, _LOCK, _CURRENT) or _TEMPORARY.fullmatch(path.name) is not None or _is_generation(path)
    )


def _remove_generation(path: Path) -> None:
    if os.path.ismount(path):
        unmount(path)
    shutil.rmtree(path, ignore_errors=True)


def _remove_if_empty(folder: Path) -> None:
    """A template's folder without a template is gone, but for a stranger's things in it.

    The caller holds `building`, which goes too: whoever waits for it sees that its file is gone, and makes it anew.
    """
    if (folder / _CURRENT).is_symlink() or any(_is_generation(path) for path in list_folder(folder)):
        return
    for name in (_LOCK, _BUILDING):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _mend_locks(folder: Path) -> None:
    """What stands in the place of a template's lock and is no file is gone: nobody can hold it. So is a false link."""
    for path in (folder / _BUILDING, folder / _LOCK):
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            shutil.rmtree(path, ignore_errors=True)
        elif not stat.S_ISREG(mode):
            path.unlink(missing_ok=True)
