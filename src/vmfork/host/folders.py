"""Private folders, what in them is ours, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.units import MIB

if TYPE_CHECKING:
    import re
    from pathlib import Path

# What open(2), `open_file` and `read_file` say of something that is no regular file, or too large to be a record.
NO_FILE = frozenset({errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EFBIG})
# What the host says of something that is not there. Any other number is a refusal: it may be there all the same.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
# No record of ours comes near it.
_RECORD_LIMIT = 16 << 20


def make_private(path: Path) -> Path:
    """`path` is a folder of mode 0700 that belongs to us; whatever was missing of it and its parents was made.

    Raises `HostError` when it belongs to another user or is a link, or when its parent is neither ours nor root's. The
    shared-memory tmpfs is writable for everyone, and a folder planted there must not be trusted with guest memory.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_parent(path)
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        raise HostError(
            f"cannot use the folder {path}: {error.strerror}",
            hint="set VMFORK_HOME and VMFORK_RUNTIME_DIR to folders you own",
        ) from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise HostError(
            f"the folder {path} belongs to another user or is a link",
            hint="remove it, or set VMFORK_RUNTIME_DIR and VMFORK_HOME to folders of your own",
        )
    if stat.S_IMODE(info.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def _check_parent(path: Path) -> None:
    """Raises `HostError` when others than we and root decide what `path` is, or what it links to."""
    info = path.parent.stat()
    if not {path.parent.lstat().st_uid, info.st_uid} <= {0, os.getuid()}:
        raise HostError(
            f"the folder {path.parent} belongs to another user, who could put another {path.name} into it",
            hint="remove it, or set VMFORK_RUNTIME_DIR and VMFORK_HOME to folders of your own",
        )
    if _is_open_to_others(info):
        raise HostError(
            f"others may write to the folder {path.parent}, and could put another {path.name} into it",
            hint=f"chmod go-w {path.parent}, or set VMFORK_RUNTIME_DIR and VMFORK_HOME to folders of your own",
        )


def _is_open_to_others(info: os.stat_result) -> bool:
    """Whether others may replace what lies in the folder. With the sticky bit only the owner of a thing may."""
    # A group of this user's own is no other: many distributions give each user one, and a umask of 002.
    shared = stat.S_IWOTH | (0 if info.st_gid in (0, os.getgid()) else stat.S_IWGRP)
    return bool(info.st_mode & shared) and not info.st_mode & stat.S_ISVTX


def find_untrusted(path: Path) -> Path | None:
    """The first folder on the way to `path` in which others may replace what lies there, and so `path` itself.

    `path` must hold no link (`os.path.realpath`). `None` when only this user and root decide what it is.
    """
    for folder in reversed(path.parents):
        info = folder.lstat()
        if info.st_uid not in (0, os.getuid()) or _is_open_to_others(info):
            return folder
    return None


def list_ours(parent: Path, name: re.Pattern[str], *, marker: str) -> list[Path]:
    """The folders in `parent` that are ours, sorted: this user's, no links, named in full by `name`, with a `marker`.

    `marker` is a regular file that each such folder has from its first moment to its last. Whatever else lies in
    `parent` is a stranger's: a runtime folder may be one that other programs use too.
    """
    return [path for path in list_folder(parent) if name.fullmatch(path.name) and is_ours(path, marker=marker)]


def is_ours(path: Path, *, marker: str) -> bool:
    """Whether there is a folder of this user's at `path`, with a regular file called `marker` in it.

    Raises `OSError` when that cannot be seen.
    """
    if not _is_own_folder(find_info(path)):
        return False
    inside = find_info(path / marker)
    return inside is not None and stat.S_ISREG(inside.st_mode)


def is_private_folder(path: Path) -> bool:
    """Whether `path` is a folder that this user made for himself alone. Raises `OSError` when that cannot be seen."""
    info = find_info(path)
    return info is not None and _is_own_folder(info) and stat.S_IMODE(info.st_mode) == 0o700


def _is_own_folder(info: os.stat_result | None) -> bool:
    return info is not None and stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()


def find_info(path: Path) -> os.stat_result | None:
    """What lies at `path`, a link as a link; `None` where nothing does. Raises `OSError` when that cannot be seen."""
    try:
        return path.lstat()
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise


def count_mib(info: os.stat_result | None) -> int:
    """MiB that the file takes, rounded up; its holes take none, and neither does one that is not there."""
    return 0 if info is None else -(-info.st_blocks * 512 // MIB)


def list_folder(parent: Path) -> list[Path]:
    """What lies in `parent`, sorted; empty when there is no such folder."""
    try:
        return sorted(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_link(path: Path) -> str | None:
    """What the link at `path` holds, `None` where there is no link. Raises `OSError` when that cannot be seen."""
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in ABSENT | {errno.EINVAL}:  # EINVAL: it is no link
            return None
        raise


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file at `path`, with mode 0600 where `flags` make it.

    Raises `OSError`; its number is one of `NO_FILE` when something else stands there: a FIFO would keep the reader for
    ever, and a link would lead elsewhere.
    """
    # O_NONBLOCK is for a FIFO or a device in the file's place. It changes nothing for a file.
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    with ExitStack() as on_failure:
        on_failure.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        on_failure.pop_all()
    return fd


def read_file(path: Path, *, limit: int = _RECORD_LIMIT) -> bytes:
    """What the regular file at `path` holds. Raises `OSError` as `open_file`, and for more than `limit` bytes."""
    fd = open_file(path)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size} bytes, {limit} at most are read", str(path))
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def find_content(path: Path) -> bytes | None:
    """What the file at `path` holds; `None` where there is none, or something that is no file of ours.

    Raises `OSError` when that cannot be seen: what is there must not count as missing because the host refused once.
    """
    try:
        return read_file(path)
    except OSError as error:
        if error.errno in ABSENT | NO_FILE:
            return None
        raise


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """`path` holds `data`: a reader sees the old content or the new, never a part of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link_atomically(path: Path, target: str) -> None:
    """`path` is a symbolic link to `target`; at no moment was it missing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.symlink_to(target)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def tail_of(path: Path, *, limit: int = 4096) -> str:
    """The last `limit` bytes of a file as text; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""
