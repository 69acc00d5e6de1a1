"""Templates on disk: staged, committed by one atomic step, opened under a shared lock, swept when nobody owns them."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from vmfork.config import NAME, check_name
from vmfork.errors import (
    StoreBusy,
    TemplateCorrupt,
    TemplateElsewhere,
    TemplateExists,
    TemplateNotFound,
    TemplateStale,
)
from vmfork.host.folders import find_info, is_private_folder, list_folder, list_ours, make_private, read_link
from vmfork.host.lock import FileLock, is_locked
from vmfork.store.folder import (
    BUILDING,
    CURRENT,
    LOCK,
    SharedFolder,
    find_unnamed,
    is_known,
    lock_building,
    lock_exclusively,
    mend_locks,
    remove_if_empty,
    sweep_generations,
)
from vmfork.store.opened import OpenTemplate, read_manifest
from vmfork.store.ram_file import digest_open_ram
from vmfork.store.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmfork.store.manifest import Manifest


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
        return sorted(path.name for path in self._folders() if (path / CURRENT).is_symlink())

    def list_made_of(self, image: str) -> list[str]:
        """Names of the templates that were booted here from the image of that name, as far as they can be read, sorted.

        One that came from elsewhere has the name of an image there.
        """
        found = []
        for name in self.list_names():
            with suppress(TemplateNotFound, TemplateCorrupt, TemplateElsewhere, TemplateStale, StoreBusy):
                m = self.read_manifest(name)
                if m.image == image and not m.came_from:
                    found.append(name)
        return found

    def find_generation(self, name: str) -> str | None:
        """The generation in force under `name`, or `None`. One system call: nothing is opened or checked.

        Raises `OSError` when that cannot be seen: a template in force would be built again.
        """
        return read_link(self.folder / check_name(name) / CURRENT)

    def note_use(self, name: str) -> None:
        """The template was used now. One system call."""
        # The kernel's own stamps stand still for a tick (4 ms), and two of one tick are equal: names would decide.
        now_ns = time.time_ns()
        with suppress(OSError):  # it was removed meanwhile
            os.utime(self.folder / name / LOCK, ns=(now_ns, now_ns))

    def find_last_use(self, name: str) -> float:
        """When the template was last forked, or else made, in seconds since 1970; 0 where it is gone.

        Raises `OSError` when that cannot be seen: it would be the first to go for a budget.
        """
        info = find_info(self.folder / name / LOCK)
        return 0.0 if info is None else info.st_mtime

    def read_manifest(self, name: str) -> Manifest:
        """The manifest of the template in force.

        Raises `TemplateNotFound`, `TemplateCorrupt`, `TemplateElsewhere`, `TemplateStale` (format).
        """
        with self._shared(name) as folder:
            return read_manifest(name, folder)

    def open(self, name: str, *, generation: str = "") -> OpenTemplate:
        """The template's files, found whole: sizes of both and the digest of the state match the manifest.

        Raises `TemplateNotFound`, `TemplateCorrupt`, `TemplateElsewhere`, and `TemplateStale` for another format and
        when the host was booted since. With `generation` it also raises `TemplateNotFound` when another is in force
        now.
        """
        with self._shared(name) as folder:
            manifest = read_manifest(name, folder)
            if generation and manifest.generation != generation:
                raise TemplateNotFound(name)
            return OpenTemplate.of(manifest, folder)

    @contextmanager
    def kept_in_force(self, name: str, generation: str) -> Iterator[None]:
        """Nobody replaces or removes that generation inside the block, which must be short: they wait for it.

        Raises `TemplateNotFound` when it is not in force, and `StoreBusy`.
        """
        with self._shared(name) as folder:
            if folder.name != generation:
                raise TemplateNotFound(name)
            yield

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
            on_failure.callback(remove_if_empty, folder)
            sweep_generations(folder)
            if not replace and (folder / CURRENT).is_symlink():
                raise TemplateExists(name)
            staging = Staging(name, folder, lock, memory_bytes=memory_bytes)
            on_failure.pop_all()
        return staging

    async def remove(self, name: str) -> None:
        """No template of that name exists; forks made from it run on. Raises `TemplateNotFound`, `StoreBusy`."""
        check_name(name)
        folder = self.folder / name
        mend_locks(folder)
        if not (folder / CURRENT).is_symlink():
            self.sweep()
            raise TemplateNotFound(name)
        try:
            building = await lock_building(folder)
        except FileNotFoundError as error:  # another has just removed it
            raise TemplateNotFound(name) from error
        with building, await lock_exclusively(folder):
            try:
                (folder / CURRENT).unlink()
            except FileNotFoundError as error:  # another has just removed it, and we made its locks anew
                raise TemplateNotFound(name) from error
            finally:
                sweep_generations(folder)
                remove_if_empty(folder)

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
        """Generations that no live process builds and no link names, and empty folders: what a sweep removes."""
        left = [path for folder in self._folders() if not is_locked(folder / BUILDING) for path in find_unnamed(folder)]
        return left + self._find_empty()

    def find_strangers(self) -> list[Path]:
        """What lies beside the templates, or in the folder of one, and is not ours. Nothing of ours touches it."""
        ours = self._folders()
        inside = [path for folder in ours for path in list_folder(folder) if not is_known(path)]
        return sorted({*list_folder(self.folder)} - {*ours, *self._find_empty()}) + inside

    def sweep(self) -> list[str]:
        """Generations that no live process builds and no link names are gone. Gives what was removed.

        So are empty folders. Strangers' things stay.
        """
        for path in self._find_empty():
            with suppress(OSError):  # there is something in it now
                path.rmdir()
        removed = []
        for folder in self._folders():
            lock = None
            with suppress(OSError):  # removed just now, by its owner or another sweep
                lock = FileLock.try_acquire(folder / BUILDING, holder=f"process {os.getpid()}", must_exist=True)
            if lock is None:
                continue
            with lock, suppress(OSError):  # it cannot be seen which generation is in force: all stay
                removed += sweep_generations(folder)
                remove_if_empty(folder)
        return removed

    def clear(self) -> None:
        """No template is left, nor the folder of all, but for those that another process builds or removes."""
        for folder in self._folders():
            lock = None
            with suppress(OSError):  # removed just now
                lock = FileLock.try_acquire(folder / BUILDING, holder=f"process {os.getpid()}", must_exist=True)
            if lock is None:
                continue
            with lock, suppress(OSError):
                (folder / CURRENT).unlink(missing_ok=True)
                sweep_generations(folder)
                remove_if_empty(folder)
        with suppress(OSError):
            self.folder.rmdir()

    def _find_empty(self) -> list[Path]:
        """Folders whose maker was killed before there was a lock in them, or their remover when there was none left."""
        named = [path for path in list_folder(self.folder) if NAME.fullmatch(path.name)]
        return [path for path in named if is_private_folder(path) and not list_folder(path)]

    def _folders(self) -> list[Path]:
        return list_ours(self.folder, NAME, marker=BUILDING)

    async def _claim(self, name: str, *, wait_s: float) -> FileLock:
        """The lock `building`, held, of a folder that exists: its former holder may have removed the folder."""
        while True:
            folder = make_private(make_private(self.folder) / name)
            with suppress(FileNotFoundError):
                return await lock_building(folder, wait_s=wait_s)

    def _shared(self, name: str) -> SharedFolder:
        check_name(name)
        return SharedFolder(name, self.folder / name)
