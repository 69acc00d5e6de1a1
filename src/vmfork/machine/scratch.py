"""The disk that a machine writes to: `/scratch` in its guest, two files on the host (hypervisor/base.py, Scratch).

Where a machine boots, the lower one is a file system in which nothing is, made here: a guest need not be able to make
one. Where it goes on from something frozen, that is what was on the disk then. The files of machines have no name. They
are gone with whoever has them open, on whatever way that ends.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host.environ import PATH, bare_environ
from vmfork.host.folders import make_private
from vmfork.host.nameless import open_nameless
from vmfork.host.tool import find_tool
from vmfork.hypervisor.base import Scratch
from vmfork.hypervisor.qemu import format_of, write_empty
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PROGRAM = "mke2fs"
# No journal: a disk that ends with its machine is never found half-written. Tables of inodes are made by the guest when
# it comes to them. All that is said here is said so that what a host has configured does not count.
_FEATURES = (
    "none,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,uninit_bg,dir_nlink,"
    "extra_isize"
)


def find_mke2fs() -> str:
    """The path of mke2fs. Raises `HostError` when it is not installed."""
    return find_tool(
        _PROGRAM,
        "and the file system of a machine's disk is made with it",
        hint="install it: apt-get install e2fsprogs; or leave the disk away: disk_mib = 0",
        path=PATH,  # an ordinary user's does not lead there
    )


def build_argv(program: str, path: str) -> list[str]:
    """The command that makes a file system of all of the file at `path`, sparse, with the host's user in nothing."""
    return [
        program,
        *("-q", "-F", "-t", "ext4", "-O", _FEATURES),
        *("-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-L", "scratch"),
        *("-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"),
        path,
    ]


def make_base(folder: Path, size_mib: int) -> int:
    """A descriptor, for the caller to close, of a file without a name in `folder`: a file system in which nothing is.

    It takes 20 to 60 ms. Raises `HostError`.
    """
    program = find_mke2fs()
    with ExitStack() as on_failure:
        fd = _new_file(folder)
        on_failure.callback(os.close, fd)
        os.ftruncate(fd, size_mib * MIB)
        done = subprocess.run(
            build_argv(program, f"/proc/self/fd/{fd}"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=bare_environ(),
            pass_fds=(fd,),
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise HostError(f"{_PROGRAM} failed (exit status {done.returncode})", hint="see its log below", log=said)
        on_failure.pop_all()
    return fd


@contextmanager
def opened_image(folder: Path, size_mib: int) -> Iterator[int]:
    """An image without a name in which nothing was written, until the end of the block."""
    fd = _new_file(folder)
    try:
        write_empty(fd, size_mib)
        yield fd
    finally:
        os.close(fd)


def open_scratch(base_fd: int, folder: Path, size_mib: int, opened: ExitStack) -> Scratch:
    """The disk of one machine over what is in `base_fd`; what it writes is its own, open until `opened` is closed."""
    own_fd = opened.enter_context(opened_image(folder, size_mib))
    return Scratch(base_fd=base_fd, base_format=format_of(base_fd), own_fd=own_fd)


def _new_file(folder: Path) -> int:
    try:
        return open_nameless(make_private(folder))
    except OSError as error:
        raise HostError(
            f"no disk for a machine can be made in {folder}: {error.strerror}",
            hint="free space there, or set VMFORK_HOME to a folder of another file system",
        ) from error
