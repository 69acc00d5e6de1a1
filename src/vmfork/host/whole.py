"""A file that is written in pieces and appears whole."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vmfork.errors import ConfigError, HostError
from vmfork.host.folders import list_folder
from vmfork.host.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


@contextmanager
def written_whole(
    path: Path, *, durable: bool = False, appearing: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[IO[bytes]]:
    """What the block wrote is at `path`, mode 0600; after an error what was there before is. Raises `OSError`.

    Until then it lies beside `path` under a name with a dot, and locked. One that nobody has locked was left by a
    process that was killed, and is removed by the next that writes `path`. A `durable` one is on the disk before it
    takes its name, which it does inside `appearing`: what that raises is an error too. A link is followed. Raises
    `ConfigError` where no file can be at `path`.
    """
    path = find_place(path)
    sweep_left(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    lock = FileLock.try_acquire(temporary)
    if lock is None:
        raise HostError(f"another process took {temporary}", hint="try again")
    with lock:
        try:
            with open(os.dup(lock.fileno()), "wb") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            with appearing():
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if durable:
        _sync(path.parent)


def find_place(path: Path) -> Path:
    """Where a file at `path` lies, which is written or replaced. A link is followed.

    Raises `ConfigError` where something else is, or there is no folder for it.
    """
    place = Path(os.path.realpath(path))
    if path.name == "" or place.is_dir():
        raise ConfigError("file", str(path), f"{path} is a folder", hint="name a file in it")
    if os.path.lexists(place) and not place.is_file():
        raise ConfigError("file", str(path), f"{path} is no file that can be replaced", hint="name another")
    if not place.parent.is_dir():
        raise ConfigError("file", str(path), f"there is no folder {path.parent}", hint="make it first, or name another")
    return place


def sweep_left(path: Path) -> None:
    """Nothing is left of processes that were killed while they wrote `path`."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.part")
    for left in (each for each in list_folder(path.parent) if name.fullmatch(each.name)):
        with suppress(FileNotFoundError):  # another removed it just now
            if (lock := FileLock.try_acquire(left, must_exist=True)) is not None:
                with lock:
                    left.unlink()


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
