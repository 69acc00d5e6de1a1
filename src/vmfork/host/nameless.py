"""A file that no path leads to: it is gone when nobody has it open or mapped, on whatever way that came."""

from __future__ import annotations

import errno
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What a file system says that has no such files, as an NFS has none (open(2), O_TMPFILE).
_UNKNOWN = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


def open_nameless(folder: Path) -> int:
    """A descriptor, for the caller to close, of a new file in the file system of `folder`, open for both, mode 0600."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _UNKNOWN or not folder.is_dir():
            raise
    path = folder / f".nameless-{secrets.token_hex(8)}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    path.unlink()
    return fd
