"""A guest's file system as a file that a virtual disk is read from: squashfs, made by `sqfstar` of a tar that streams.

It needs no root and no mount, owners and modes come with the tar, and the same tree gives the same file. Nothing in it
is compressed: the host has it once in its page cache, for all machines, and a guest that reads it decompresses nothing.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from typing import IO, TYPE_CHECKING, cast

from vmfork.errors import ImageError
from vmfork.host.environ import bare_environ
from vmfork.host.tool import find_tool
from vmfork.image.recipe import EPOCH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmfork.image.tree import Tree

# What the guest's kernel calls it.
FILE_SYSTEM = "squashfs"
# The file, until it has a name by its content.
NAME = "disk"
_PROGRAM = "sqfstar"
# Written in pieces of this size: tarfile's own are of 16 KiB.
_PIECE = 1 << 20


def find_sqfstar() -> str:
    """The path of sqfstar. Raises `HostError` when it is not installed."""
    hint = "install it: apt-get install squashfs-tools; or keep the root in memory: root = memory"
    return find_tool(_PROGRAM, "and roots on a disk are made with it", hint=hint)


def build_argv(program: str, path: Path) -> list[str]:
    """The command that makes `path` of a tar on its standard input.

    Files are not packed together at their ends: who reads one would read its neighbours too.
    """
    return [
        program,
        *("-quiet", "-no-progress", "-exit-on-error"),
        *("-noI", "-noD", "-noF", "-noX", "-no-fragments"),
        *("-mkfs-time", str(EPOCH), "-root-time", str(EPOCH), "-root-mode", "755", "-root-uid", "0", "-root-gid", "0"),
        str(path),
    ]


class _Line:
    """What tarfile writes to: a pipe that says how much it took. A tarfile that streams copies each byte twice more."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._written = 0

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self._written += len(data)
        return len(data)

    def tell(self) -> int:
        return self._written


def write_disk(tree: Tree, path: Path, check: Callable[[float], None]) -> None:
    """`path` is a file system that holds the tree. `check(fraction)` is called before every entry, and may raise.

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
            pipesize=_PIECE,
        ) as process,
    ):
        assert process.stdin is not None
        try:
            line = cast("IO[bytes]", _Line(process.stdin.fileno()))
            with tarfile.open(fileobj=line, mode="w", format=tarfile.GNU_FORMAT) as tar:
                tar.copybufsize = _PIECE  # type: ignore[attr-defined] # typeshed does not know it
                tree.write_tar(tar, check)
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
