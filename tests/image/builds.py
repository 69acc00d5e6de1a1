"""What tests of real builds look at: steps, processes, the store."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from vmfork.config import ImageConfig
from vmfork.image import Image, ImageStore
from vmfork.image.record import INITRAMFS_NAME, KERNEL_NAME, RECORD_NAME

# No packages but those every image has (recipe.BASE_PACKAGES).
LEAST = ImageConfig(bare=True)
# A build takes 20 s on two idle cores, and 100 s beside a dozen others.
DEADLINE_S = 300.0

as_root = pytest.mark.needs("root")


def wait_step(child: subprocess.Popen[str], step: str) -> None:
    """The build that the command line runs in `child` has come to that step."""
    assert child.stderr is not None
    lines = []
    while line := child.stderr.readline():
        lines.append(line)
        if line == f"image: {step}\n":
            return
    pytest.fail(f"the build never came to {step!r}:\n{''.join(lines)}")


def find_processes(folder: Path) -> list[int]:
    """The processes that work below `folder`: their arguments or their environment name a path there."""
    mark = os.fsencode(folder) + b"/"
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _mentions(entry, mark)]


def _mentions(process: Path, mark: bytes) -> bool:
    try:
        # Both are empty for a zombie.
        return any(mark in (process / name).read_bytes() for name in ("cmdline", "environ"))
    except OSError:
        return False


def wait_ended(folder: Path) -> None:
    """No process works below `folder` any more; fails when one still does after the deadline."""
    while pids := find_processes(folder):
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                assert select.select([fd], [], [], DEADLINE_S)[0], f"process {pid} is still there"
            finally:
                os.close(fd)


def copy_image(image: Image, store: ImageStore) -> None:
    """`one` in that store is the image. What it needs is not known there: another process may just write that down."""
    store.make()
    folder = store.folder / image.digest
    folder.mkdir(mode=0o700)
    for name in (KERNEL_NAME, INITRAMFS_NAME, RECORD_NAME):
        shutil.copy(image.kernel.parent / name, folder)
    store.link("one", image.digest)


def list_store(images_dir: Path) -> list[str]:
    """What is in the store beside its locks: folders, half-made or whole, and names."""
    folders = [path.name for path in images_dir.iterdir() if path.name not in ("locks", "names")]
    return sorted([*folders, *(f"names/{path.name}" for path in (images_dir / "names").iterdir())])
