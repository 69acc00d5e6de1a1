"""Builds that cannot be: the error says what is wrong and what to do, and the store is as it was."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.image.builds import DEADLINE_S, LEAST, as_root, list_store
from vmfork.config import ImageConfig
from vmfork.errors import HostError, ImageError
from vmfork.image.build import NEEDED_MIB, build_image
from vmfork.image.store import ImageStore

pytestmark = pytest.mark.image

# Less than any step after the first writes.
LITTLE = 1 << 20


async def test_a_missing_package_is_named(images_dir):
    with pytest.raises(ImageError) as caught:
        await build_image(
            "one", ImageConfig(packages=("sed", "no-such-package-1"), bare=True), store=ImageStore(images_dir)
        )
    assert str(caught.value) == "Debian trixie has no package named no-such-package-1"
    assert "image.packages" in caught.value.hint
    assert "Unable to locate package no-such-package-1" in caught.value.details()
    assert list_store(images_dir) == []


@pytest.mark.parametrize(
    ("prefix", "environ"),
    [
        pytest.param(["unshare", "--net", "--"], {}, id="no network at all", marks=as_root),
        pytest.param([], {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}, id="dead proxy"),
    ],
)
def test_without_the_archive_the_error_says_so(home, images_dir, start_build, prefix, environ):
    child = start_build(home, prefix=prefix, **environ)
    output, log = child.communicate(timeout=DEADLINE_S)
    assert (child.returncode, output) == (1, "")
    assert "error: the Debian archive cannot be reached\n" in log
    assert log.splitlines()[-1] == "hint: check the network, the name service and http_proxy, then try again"
    assert "Traceback" not in log
    assert list_store(images_dir) == []


def remount(disk: Path, size_bytes: int, *, inodes: int = 0) -> None:
    """The tmpfs takes that much from now on; 0 inodes: no limit."""
    options = f"remount,size={size_bytes >> 10}k,nr_inodes={inodes}"
    subprocess.run(["mount", "-o", options, str(disk)], check=True)


def fill(disk: Path) -> None:
    """The disk has little more left than what is on it."""
    space = os.statvfs(disk)
    remount(disk, (space.f_blocks - space.f_bfree) * space.f_frsize + LITTLE)


@as_root
async def test_a_disk_too_small_is_refused_at_once(small_disk):
    remount(small_disk, 60 << 20)
    steps = []
    with pytest.raises(HostError) as caught:
        await build_image("one", LEAST, store=ImageStore(small_disk / "images"), progress=steps.append)
    # Its lock takes a page.
    assert str(caught.value) == (
        f"no space to build an image: {small_disk}/images has 59 MiB free, a build needs {NEEDED_MIB} MiB"
    )
    assert "VMFORK_HOME" in caught.value.hint
    assert steps == []
    assert list_store(small_disk / "images") == []


@as_root
async def test_a_disk_without_room_for_the_store_is_named(small_disk):
    with pytest.raises(HostError, match=f"no space is left on the disk at {small_disk}") as caught:
        await build_image("one", LEAST, store=ImageStore(small_disk / "images"))
    assert "VMFORK_HOME" in caught.value.hint


@as_root
@pytest.mark.parametrize("full_at", ["unpacking packages", "packing the image"])
async def test_a_disk_that_fills_up_is_named(small_disk, full_at):
    remount(small_disk, 900 << 20)
    steps = []

    def listen(event) -> None:
        steps.append(event.step)
        if event.step == full_at:
            fill(small_disk)

    with pytest.raises(HostError, match=f"no space is left on the disk at {small_disk}") as caught:
        await build_image("one", LEAST, store=ImageStore(small_disk / "images"), progress=listen)
    assert steps[-1] == full_at
    assert "VMFORK_HOME" in caught.value.hint
    assert list_store(small_disk / "images") == []
