"""Builds that end well: once for everyone who asks, and by whoever asks."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vmfork
from tests.image.builds import (
    DEADLINE_S,
    LEAST,
    as_root,
    copy_image,
    find_processes,
    list_store,
    wait_ended,
    wait_step,
)
from vmfork.aio import Image
from vmfork.config import ImageConfig, Places
from vmfork.errors import HostError
from vmfork.image import write_least
from vmfork.image.build import build_image
from vmfork.image.store import ImageStore

pytestmark = pytest.mark.image

NOBODY = 65534


def test_an_image_holds_what_was_asked_for_and_is_whole(built):
    images_dir, image = built
    assert ImageStore(images_dir).verify("one") == image
    assert {"base-files", "coreutils", "dash", f"linux-image-{image.kernel_release}"} <= set(image.packages)
    assert "python3" not in image.packages
    assert list_store(images_dir) == sorted([image.digest, "names/one"])


async def test_the_second_build_starts_nothing(built, tmp_path, monkeypatch):
    images_dir, image = built
    # A build would fail: no program is found any more.
    monkeypatch.setenv("PATH", str(tmp_path))
    steps = []
    assert await build_image("one", LEAST, store=ImageStore(images_dir), progress=steps.append) == image
    # The same packages, asked for by name.
    spelt = ImageConfig(packages=("dash", "coreutils"), bare=True)
    assert await build_image("one", spelt, store=ImageStore(images_dir), progress=steps.append) == image
    # By the public name, in both of its forms.
    places = Places(home=images_dir.parent, runtime=tmp_path / "runtime")
    found = await Image.build("one", spelt, places=places, progress=steps.append)
    assert steps == []
    also = await asyncio.to_thread(vmfork.Image.build, "two", LEAST, places=places, progress=steps.append)
    assert (found.digest, also.digest, also.name) == (image.digest, image.digest, "two")
    assert [step.step for step in steps] == ["done"]  # a name is new
    ImageStore(images_dir).remove("two")
    with pytest.raises(HostError, match="mmdebstrap was not found"):
        await build_image("one", ImageConfig(packages=("sed",), bare=True), store=ImageStore(images_dir))


# Imports all it needs while it may: Python and the checkout may lie where only root can read.
AS_NOBODY = """
import asyncio, os, sys
from pathlib import Path
from vmfork.config import ImageConfig
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.image.recipe import find_agent

find_agent()
os.setgroups([]), os.setgid(65534), os.setuid(65534)
asyncio.run(build_image("mine", ImageConfig(bare=True), store=ImageStore(Path(sys.argv[1]))))
"""


@pytest.mark.qemu
@as_root
def test_an_ordinary_user_builds_the_same(built, home):
    _, first = built
    package = home.parent / "python" / "vmfork"
    shutil.copytree(Path(vmfork.__file__).parent, package)
    os.chown(home, NOBODY, NOBODY)
    images_dir = home / "images"
    child = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, images_dir],
        env={**os.environ, "PYTHONPATH": str(package.parent), "HOME": str(home)},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    image = ImageStore(images_dir).verify("mine")
    # Bit for bit what root built.
    assert (image.digest, image.packages) == (first.digest, first.packages)
    assert image.initramfs.read_bytes() == first.initramfs.read_bytes()
    assert list_store(images_dir) == sorted([image.digest, "names/mine"])
    assert {path.lstat().st_uid for path in images_dir.rglob("*")} == {NOBODY}


def test_two_builds_again_sweep_what_a_killed_one_left_and_make_the_same_image(built, home, images_dir, start_build):
    _, first = built
    copy_image(first, ImageStore(images_dir))
    write_least(images_dir / first.digest, 64, measured="not at all, by a test")  # it boots nothing for that
    killed = start_build(home, "--rebuild")
    wait_step(killed, "downloading packages")
    assert len(find_processes(images_dir)) > 1
    killed.kill()
    killed.wait()
    # The kernel tells mmdebstrap, which ends what it started.
    wait_ended(images_dir)
    whole = sorted([first.digest, "names/one"])
    left = sorted({*list_store(images_dir)} - {*whole})
    assert len(left) == 2
    assert all(name.startswith(".staging-") for name in left)
    assert [image.digest for image in ImageStore(images_dir).list_images()] == [first.digest]
    children = [start_build(home, "--rebuild") for _ in range(2)]
    ends = [child.communicate(timeout=DEADLINE_S) for child in children]
    assert [child.returncode for child in children] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    # The second uses what the first has made.
    assert sorted("waiting for another build" in log for _, log in ends) == [False, True]
    assert sorted("downloading packages" in log for _, log in ends) == [False, True]
    # It is named by its content: built again, bit for bit, it is the same. What is there stays.
    image = ImageStore(images_dir).verify("one")
    assert (image.digest, image.created_at) == (first.digest, first.created_at)
    assert ImageStore(images_dir).list_images() == [image]
    assert list_store(images_dir) == whole
