"""Folders of builds on their way: each locked by its process, removed with it, swept when it was killed."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import StoreBusy
from vmfork.host.folders import list_folder
from vmfork.host.lock import FileLock, is_locked

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = ".staging-"
_LOCK = ".lock"
_OURS = re.compile(r"\.staging-[0-9a-f]{16}(\.lock)?")


@contextmanager
def open_staging(parent: Path) -> Iterator[Path]:
    """A folder of our own in `parent`, gone with the block whatever ends it."""
    folder = _name_new(parent)
    # The lock is held before the folder can be seen: a sweep never meets a live build's folder unlocked.
    lock = FileLock.try_acquire(_lock_of(folder))
    if lock is None:
        raise StoreBusy(str(folder))
    with lock:
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            remove_tree(folder)
            _lock_of(folder).unlink(missing_ok=True)


def staging_named(parent: Path, sha256: str) -> tuple[Path, Path]:
    """A staging folder in `parent` that all who make the same content find, and its lock."""
    folder = parent / f"{_PREFIX}{sha256[:16]}"
    return folder, _lock_of(folder)


def sweep_staging(parent: Path) -> list[Path]:
    """The folders that killed processes left in `parent` are gone, and given. Those of live processes stay."""
    swept = []
    for folder in _find(parent):
        lock = FileLock.try_acquire(_lock_of(folder))
        if lock is None:
            continue
        with lock:
            if folder.is_dir():
                remove_tree(folder)
                swept.append(folder)
            _lock_of(folder).unlink(missing_ok=True)
    return swept


def find_left(parent: Path) -> list[Path]:
    """The folders in `parent` whose process was killed, as they are at this moment."""
    return [folder for folder in _find(parent) if folder.is_dir() and not is_locked(_lock_of(folder))]


def is_staging(path: Path) -> bool:
    """Whether `path` has the name of a staging folder, or of the lock of one."""
    return _OURS.fullmatch(path.name) is not None


def _find(parent: Path) -> list[Path]:
    """Staging folders in `parent`, by their own names and by their locks': a crash may leave one without the other."""
    names = {path.name.removesuffix(_LOCK) for path in list_folder(parent) if is_staging(path)}
    return [parent / name for name in sorted(names)]


def discard(folder: Path) -> None:
    """The folder is gone; its name was free at once, so that nobody opened a part of it."""
    doomed = _name_new(folder.parent)
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    remove_tree(doomed)


def remove_tree(folder: Path) -> None:
    """The folder is gone, as far as this user can remove it."""
    # Packages bring folders without write permission, which an ordinary user cannot empty.
    for path, folders, _ in os.walk(folder):
        for name in folders:
            child = Path(path, name)
            # A crashed build's mmdebstrap may be removing the same files just now.
            with suppress(FileNotFoundError):
                if not child.is_symlink():
                    child.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _name_new(parent: Path) -> Path:
    return parent / f"{_PREFIX}{secrets.token_hex(8)}"


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)
