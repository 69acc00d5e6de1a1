"""A file that is written in pieces and appears whole."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host.folders import list_folder
from vmfork.host.lock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def written_whole(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """What the block wrote is at `path`, mode 0600; after an error what was there before is. Raises `OSError`.

    Until then it lies beside `path` under a name with a dot, and locked. One that nobody has locked was left by a
    process that was killed, and is removed by the next that writes `path`. A `durable` one is on the disk before it
    takes its name.
    """
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
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if durable:
        _sync(path.parent)


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
