"""The folder of one template: its locks, its generations, and what of it is waste."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from vmfork.errors import StoreBusy, TemplateNotFound
from vmfork.host.folders import list_folder, read_link
from vmfork.host.lock import FileLock, read_holder
from vmfork.host.tmpfs import unmount

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

BUILDING, LOCK, CURRENT = "building", "lock", "current"
_GENERATION = re.compile(r"[0-9a-f]{16}")
# A link or file on its way to its name (host/folders.py).
_TEMPORARY = re.compile(r"\.[a-z.]+\.[0-9a-f]{8}")
# Whoever holds the lock does so to read a manifest and open two files, or to swap a link.
_LOCK_WAIT_S = 10.0
# A fork waits this long for a link to be swapped. It blocks the event loop meanwhile; the holder of the lock does not
# need the loop, so this cannot deadlock.
_SHARED_WAIT_S, _SHARED_PAUSE_S = 1.0, 0.001
# Any command sweeps, and holds `building` meanwhile. A build that meets it waits this long rather than fail.
_SWEEP_WAIT_S = 0.5


class SharedFolder:
    """The folder of the generation in force. Nobody can remove it inside the block."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._lock: FileLock | None = None

    def __enter__(self) -> Path:
        if not (self._folder / CURRENT).is_symlink():
            raise TemplateNotFound(self._name)
        try:
            self._lock = _lock_shared(self._folder)
        except FileNotFoundError as error:
            raise TemplateNotFound(self._name) from error
        if self._lock is None:
            raise StoreBusy(f"template {self._name!r}", read_holder(self._folder / BUILDING))
        with ExitStack() as on_failure:
            on_failure.callback(self._lock.close)
            generation = read_link(self._folder / CURRENT)
            if generation is None:
                raise TemplateNotFound(self._name)
            on_failure.pop_all()
        return self._folder / generation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()


async def lock_building(folder: Path, *, wait_s: float = 0.0) -> FileLock:
    """The lock of the one who builds or removes the template. Raises `StoreBusy`, and `OSError` without the folder."""
    path = folder / BUILDING
    lock = await FileLock.acquire(path, holder=f"process {os.getpid()}", wait_s=max(wait_s, _SWEEP_WAIT_S))
    if lock is None:
        raise StoreBusy(f"template {folder.name!r}", read_holder(path))
    return lock


def _lock_shared(folder: Path) -> FileLock | None:
    """The lock under which files are opened, or `None` when it was held exclusively all the while."""
    end = time.monotonic() + _SHARED_WAIT_S
    while (lock := FileLock.try_acquire(folder / LOCK, shared=True)) is None and time.monotonic() < end:
        time.sleep(_SHARED_PAUSE_S)
    return lock


async def lock_exclusively(folder: Path) -> FileLock:
    lock = await FileLock.acquire(folder / LOCK, wait_s=_LOCK_WAIT_S)
    if lock is None:
        raise StoreBusy(f"template {folder.name!r}", "forks that are just being made")
    return lock


def sweep_generations(folder: Path) -> list[str]:
    """Only the generation in force is left of ours. The caller holds `building`."""
    removed = []
    for path in find_unnamed(folder):
        remove_generation(path)
        removed.append(str(path))
    for path in list_folder(folder):
        if _TEMPORARY.fullmatch(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)  # its writer died before its rename
    return removed


def find_unnamed(folder: Path) -> list[Path]:
    """The generations in a template's folder but for the one in force.

    Raises `OSError` when it cannot be seen which one that is: then it would be removed with the others.
    """
    kept = read_link(folder / CURRENT)
    return [path for path in list_folder(folder) if path.name != kept and _is_generation(path)]


def _is_generation(path: Path) -> bool:
    return _GENERATION.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def is_known(path: Path) -> bool:
    """Whether what lies in a template's folder is part of it."""
    return path.name in (BUILDING, LOCK, CURRENT) or _TEMPORARY.fullmatch(path.name) is not None or _is_generation(path)


def remove_generation(path: Path) -> None:
    if os.path.ismount(path):
        unmount(path)
    shutil.rmtree(path, ignore_errors=True)


def remove_if_empty(folder: Path) -> None:
    """A template's folder without a template is gone, but for a stranger's things in it.

    The caller holds `building`, which goes too: whoever waits for it sees that its file is gone, and makes it anew.
    """
    if (folder / CURRENT).is_symlink() or any(_is_generation(path) for path in list_folder(folder)):
        return
    for name in (LOCK, BUILDING):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def mend_locks(folder: Path) -> None:
    """What stands in the place of a template's lock and is no file is gone: nobody can hold it. So is a false link."""
    for path in (folder / BUILDING, folder / LOCK):
        try:
            mode = path.lstat().st_mode
        except OSError:
            continue
        if stat.S_ISDIR(mode):
            shutil.rmtree(path, ignore_errors=True)
        elif not stat.S_ISREG(mode):
            path.unlink(missing_ok=True)
