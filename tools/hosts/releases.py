"""The Debian releases that vmfork is tested on beside this host's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hosts.root import open_root

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

# What tools/setup installs here, and what tests need that a least Debian has not.
_PACKAGES = (
    "cpio", "e2fsprogs", "gcc", "libc6-dev", "libcap2-bin", "lz4", "make", "mmdebstrap", "mount", "openssl", "passt",
    "procps", "python3-venv", "qemu-system-x86", "squashfs-tools", "strace", "tmux",
)  # fmt: skip


def open_debian12() -> AbstractContextManager[Path]:
    """In the block the root file system of a Debian 12: QEMU 7.2, Python 3.11."""
    return open_root("bookworm", _PACKAGES)


def open_debian13() -> AbstractContextManager[Path]:
    """In the block the root file system of a Debian 13: QEMU 10.0, Python 3.13."""
    return open_root("trixie", _PACKAGES)
