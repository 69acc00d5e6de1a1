"""A tmpfs of our own, where we may mount one."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import TYPE_CHECKING

from vmfork.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

# mount(2) and umount(2)
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def mount_tmpfs(path: Path, *, size_bytes: int) -> bool:
    """A tmpfs of at most `size_bytes`, readable by us only, covers `path`; `False` when we may not mount here.

    The root of a tmpfs has mode 1777 unless told otherwise, whatever the folder under it had: hence `mode=0700`.
    """
    options = f"mode=0700,size={size_bytes}".encode()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc().mount(b"vmfork", os.fsencode(path), b"tmpfs", flags, options) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.EACCES):
        return False
    raise HostError(f"cannot mount a tmpfs at {path}: {os.strerror(code)}")


def unmount(path: Path) -> None:
    """Nothing is mounted at `path`. Open files stay usable; the memory is freed when the last is closed."""
    while _libc().umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        pass  # an interrupted build may have stacked a second one
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOENT, errno.EPERM):
        raise HostError(f"cannot unmount {path}: {os.strerror(code)}")
