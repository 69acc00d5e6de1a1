"""Homes of a test's own, one image for all, and the command line as a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.image.builds import LEAST, copy_image, find_processes
from vmfork.aio import Image
from vmfork.image.store import ImageStore


@pytest.fixture(scope="session")
def built(instance, tmp_path_factory):
    """A store and the image `one` in it, for those who change neither: a copy of `bare`, which other tests boot."""
    asyncio.run(Image.build("bare", LEAST, places=instance))
    bare = ImageStore(instance.images).open("bare")
    store = ImageStore(tmp_path_factory.mktemp("built") / "images")
    copy_image(bare, store)
    return store.folder, store.open("one")


@pytest.fixture
def home() -> Iterator[Path]:
    """A VMFORK_HOME of the test's own, which another user can be given, and in which nobody works afterwards."""
    with tempfile.TemporaryDirectory(prefix="vmfork-test-image-") as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "home")
        path.mkdir(mode=0o700)
        yield path
        assert find_processes(path) == []


@pytest.fixture
def images_dir(home) -> Path:
    return home / "images"


@pytest.fixture
def small_disk(home) -> Iterator[Path]:
    """A tmpfs of 60 MiB with three inodes left, mounted at `home`; tests remount it as they need it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m,nr_inodes=3,mode=0700", "tmpfs", str(home)], check=True)
    yield home
    subprocess.run(["umount", str(home)], check=True)


@pytest.fixture
def start_build() -> Iterator[object]:
    """Starts `vmfork image build one` for the least image, its output in pipes; what the test leaves is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(home: Path, *options: str, prefix: Sequence[str] = (), **environ: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [*prefix, sys.executable, "-m", "vmfork", "image", "build", "one", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "VMFORK_HOME": str(home), "VMFORK_IMAGE_BARE": "1", **environ},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        with child:
            child.kill()
