"""Private folders and files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from typing import TYPE_CHECKING

from vmfork.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path


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
    if not {path.parent.lstat().st_uid, path.parent.stat().st_uid} <= {0, os.getuid()}:
        raise HostError(
            f"the folder {path.parent} belongs to another user, who could put another {path.name} into it",
            hint="remove it, or set VMFORK_RUNTIME_DIR and VMFORK_HOME to folders of your own",
        )


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """`path` holds `data`: a reader sees the old content or the new, never a part of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
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
