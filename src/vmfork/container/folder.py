"""A root file system that lies in a folder of this host."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.container.layer import bound_time, is_taken
from vmfork.container.root import Inode
from vmfork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmfork.container.layer import Applying

_PIECE = 1 << 20


def copy_folder(folder: Path, applying: Applying) -> None:
    """What lies in the folder is in the root, as it lies there. Raises `ConfigError` where it cannot be read."""
    applying.layers = 1
    linked: dict[tuple[int, int], list[str]] = {}
    with _readable(folder):
        for entry, inside, info in _walk(folder):
            applying.check()
            applying.budget.take(str(folder), entries=1, described=len(entry.name))
            if stat.S_ISSOCK(info.st_mode):
                continue  # it was its maker's, and no initramfs has one: its other names neither
            key = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
                if key in linked:
                    applying.root.link(inside, linked[key], 1)
                    continue
                linked[key] = inside
            applying.root.put(inside, _read_entry(Path(entry.path), info, applying, str(folder)), 1)


def digest_folder(folder: Path, check: Callable[[], None]) -> str:
    """Names what lies in the folder, by names, sizes, owners, modes and times: contents are not read.

    A file is another one when it was written since: its time of change (ctime) nobody sets. Raises `ConfigError`.
    """
    total = hashlib.sha256()
    with _readable(folder):
        for entry, inside, info in _walk(folder):
            check()
            target = os.readlink(entry.path) if stat.S_ISLNK(info.st_mode) else ""
            said = ["/".join(inside), info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, target]
            is_folder = stat.S_ISDIR(info.st_mode)
            total.update(json.dumps([*said, *([] if is_folder else [info.st_ctime_ns, info.st_ino])]).encode())
    return f"dir:{total.hexdigest()}"


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise ConfigError("source", str(folder), f"cannot read {where}: {error.strerror}") from error


def _walk(folder: Path) -> Iterator[tuple[os.DirEntry[str], list[str], os.stat_result]]:
    """Every entry, the names that lead to it, and what is said of it; folders before what is in them."""
    if not folder.is_dir():
        raise ConfigError("source", str(folder), f"{folder} is no folder", hint="give dir:FOLDER")
    left: list[tuple[str, list[str]]] = [(str(folder), [])]
    while left:
        at, path = left.pop()
        for entry in sorted(os.scandir(at), key=lambda entry: entry.name):
            info, inside = entry.stat(follow_symlinks=False), [*path, entry.name]
            yield entry, inside, info
            if stat.S_ISDIR(info.st_mode):
                left.append((entry.path, inside))


def _read_entry(path: Path, info: os.stat_result, applying: Applying, name: str) -> Inode:
    inode = Inode(info.st_mode, info.st_uid, info.st_gid, bound_time(info.st_mtime))
    if stat.S_ISLNK(info.st_mode):
        inode.target = os.fsencode(os.readlink(path)).decode("utf-8", "surrogateescape")
    elif stat.S_ISREG(info.st_mode):
        applying.budget.take(name, unpacked=info.st_size)
        place = applying.contents.take(info.st_size)
        with path.open("rb") as file:
            at = 0
            while at < info.st_size and (data := file.read(min(_PIECE, info.st_size - at))):
                applying.contents.write(place, at, data)
                at += len(data)
        inode.content = place
    elif stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode):
        inode.device = (os.major(info.st_rdev), os.minor(info.st_rdev))
    if not stat.S_ISLNK(info.st_mode):
        names = os.listxattr(path, follow_symlinks=False)
        inode.xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in names if is_taken(name)}
    return inode
