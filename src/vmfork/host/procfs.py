"""Files that the kernel makes up when they are read. Every fork reads some: a file object would take twice as long."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_READ_SIZE = 65_536
# There is no such process, group or controller, this kernel does not tell, or does not tell us.
_UNTOLD = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL}
)


def read_whole(path: str | Path) -> bytes:
    """What the file holds; empty where nothing is to be told. Raises `OSError` when the host refused otherwise."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(fd, _READ_SIZE):
                parts.append(part)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _UNTOLD:
            return b""
        raise
    return b"".join(parts)
