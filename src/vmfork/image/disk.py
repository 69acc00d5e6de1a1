"""A guest's file system as a file that a virtual disk is read from: squashfs, made by `sqfstar` of a tar that streams.

It needs no root and no mount, owners and modes come with the tar, and the same tree gives the same file. Nothing in it
is compressed: the host has it once in its page cache, for all machines, and a guest that reads it decompresses nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import ImageError
from vmfork.host.environ import bare_environ
from vmfork.host.tool import find_tool
from vmfork.image.recipe import EPOCH

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from vmfork.image.tree import Slice, Tree

# What the guest's kernel calls it.
FILE_SYSTEM = "squashfs"
# The file, until it has a name by its content.
NAME = "disk"
_PROGRAM = "sqfstar"
_READER = "unsquashfs"
_PIPE_SIZE = 1 << 20
# Where a file system says where its root's inode is and where inodes begin, where an inode has its date, and how much
# lies between two headers of inodes (Linux, fs/squashfs/squashfs_fs.h).
_ROOT, _INODES, _DATE, _BETWEEN, _HEADER = 32, 64, 8, 8192, 2


def find_sqfstar() -> str:
    """The path of sqfstar. Raises `HostError` when it is not installed."""
    hint = "install it: apt-get install squashfs-tools; or keep the root in memory: root = memory"
    return find_tool(_PROGRAM, "and roots on a disk are made with it", hint=hint)


def find_unsquashfs() -> str:
    """The path of unsquashfs. Raises `HostError` when it is not installed."""
    hint = "install it: apt-get install squashfs-tools; or build the image anew with its root in memory: root = memory"
    return find_tool(_READER, "and files are read from roots on a disk with it", hint=hint)


def read_files(path: Path, inside: str, work: Path) -> dict[str, bytes]:
    """The files below the folder `inside` of the file system at `path`, by their paths in it; none without that folder.

    They lie in `work` meanwhile, which is not there before, nor afterwards. Raises `HostError` when the program is
    missing, `ImageError` when it fails, with what it said.
    """
    argv = [find_unsquashfs(), "-no-progress", "-no-xattrs", "-dest", str(work), str(path), inside]
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=bare_environ(),
        )
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace")
            raise ImageError(f"{_READER} failed (exit status {done.returncode})", hint="see its log below", log=said)
        found = sorted(Path(folder, name) for folder, _, names in os.walk(work) for name in names)
        return {str(each.relative_to(work)): each.read_bytes() for each in found if not each.is_symlink()}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def build_argv(program: str, path: Path) -> list[str]:
    """The command that makes `path` of a tar on its standard input.

    Files are not packed together at their ends: who reads one would read its neighbours too.
    """
    return [
        program,
        *("-quiet", "-no-progress", "-exit-on-error"),
        *("-noI", "-noD", "-noF", "-noX", "-no-fragments"),
        *("-mkfs-time", str(EPOCH), "-root-mode", "755", "-root-uid", "0", "-root-gid", "0"),
        str(path),
    ]


class _Line:
    """The pipe to the program. What lies in a file goes there by the kernel, which copies none of it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]

    def copy(self, source: BinaryIO, part: Slice) -> None:
        source.flush()
        at, end = part.offset, part.offset + part.size
        while at < end:
            sent = os.sendfile(self._fd, source.fileno(), at, end - at)
            if sent == 0:
                raise OSError("the file ended within what lies in it")
            at += sent


def _date_root(path: Path) -> None:
    """The root has the recipe's date: sqfstar 4.5.1 takes `-root-time`, and gives it the present."""
    with path.open("r+b") as file:

        def read_number(at: int) -> int:
            file.seek(at)
            return int.from_bytes(file.read(8), "little")

        root, inodes = read_number(_ROOT), read_number(_INODES)
        for at, byte in enumerate(EPOCH.to_bytes(4, "little"), (root & 0xFFFF) + _DATE):
            file.seek(inodes + (root >> 16) + at + _HEADER * (1 + at // _BETWEEN))
            file.write(bytes((byte,)))


def write_disk(tree: Tree, path: Path, check: Callable[[float], None]) -> None:
    """`path` is a file system that holds the tree, which must have a file of the host as its source.

    `check(fraction)` is called before every entry, and may raise.

    Raises `HostError` when the program is missing, `ImageError` when it fails, with what it said. It has ended on every
    path.
    """
    program = find_sqfstar()
    with (
        path.with_suffix(".log").open("w+b") as log,
        subprocess.Popen(
            build_argv(program, path),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=bare_environ(),
            bufsize=0,
            pipesize=_PIPE_SIZE,
        ) as process,
    ):
        assert process.stdin is not None
        try:
            tree.write_tar(_Line(process.stdin.fileno()), check)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended first, and says why
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            log.seek(0)
            said = log.read().decode(errors="replace")
            raise ImageError(
                f"{_PROGRAM} failed (exit status {process.returncode})", hint="see its log below", log=said
            )
    path.with_suffix(".log").unlink()
    _date_root(path)
