"""The guest images for tests under KVM: built and tried out on this host, and kept for a week.

With `VMFORK_TEST_HOME` they are those of that folder, where other tests of this host have built and tried most of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hosts import cache
from vmfork.config import ImageConfig, Instance, Places, VMConfig
from vmfork.image import ImageStore, recipe
from vmfork.image.build import build_image
from vmfork.image.recipe import find_agent
from vmfork.machine.prepare import try_out

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from vmfork.image import Image
    from vmfork.machine.plan import Plan

# The one that users have, and the least there can be.
FEWEST = {"default": ImageConfig(), "bare": ImageConfig(bare=True)}
# And one with packages of the user's, servers and what fills memory with files; and one whose root is on a disk.
PACKED, ON_DISK = "packed", "on-disk"
ALL = {
    **FEWEST,
    PACKED: ImageConfig(packages=("git", "openssh-server", "sqlite3", "sudo")),
    ON_DISK: ImageConfig(bare=True, root="disk"),
}


@contextmanager
def open_plans(configs: Mapping[str, ImageConfig]) -> Iterator[Mapping[str, Plan]]:
    """In the block the images exist, with their least memory; the plan of each says whether this host's KVM runs it.

    What is found out of KVM is added to the folder, and holds as long as vmfork lets it.
    """

    with _open_home(configs) as home, tempfile.TemporaryDirectory(prefix="vmfork-hosts-", dir="/dev/shm") as runtime:
        places = Places(home=home, runtime=Path(runtime))
        # A newer vmfork may not read what an older one kept.
        images = _build_missing(ImageStore(places.images), configs)
        instance = Instance(places)
        yield {image.name: asyncio.run(try_out(image, VMConfig(image=image.name), instance)) for image in images}


@contextmanager
def open_copies(images: Iterable[Image]) -> Iterator[Path]:
    """In the block the folder is a HOME for tests, with copies of `images` and of what was measured of them.

    Tests add images to it and remove them; what is kept for a week is not theirs to change.
    """
    with tempfile.TemporaryDirectory(prefix="vmfork-test-home-") as home:
        store = ImageStore(Path(home, "images"))
        store.make()
        for image in images:
            shutil.copytree(image.kernel.parent, store.folder / image.digest)
            if (disk := find_disk(image)) is not None:
                copy = Path(home, "disk")
                shutil.copyfile(disk, copy)
                store.disks.add(copy, image.disk_sha256)
                store.disks.hold_for(store.folder / image.digest, image.disk_sha256, image=image.name)
            store.link(image.name, image.digest)
        yield Path(home)


def find_disk(image: Image) -> Path | None:
    """The file that the image's root is in, if it is in one."""
    if not image.disk_sha256:
        return None
    return ImageStore(image.kernel.parents[1]).disks.locate(image.disk_sha256)


def _open_home(configs: Mapping[str, ImageConfig]) -> AbstractContextManager[Path]:
    if given := os.environ.get("VMFORK_TEST_HOME"):
        return nullcontext(Path(given))

    def make(folder: Path) -> None:
        _build_missing(ImageStore(folder / "images"), configs)

    agent = find_agent().read_bytes()
    digests = {name: recipe.compute_digest(config, agent) for name, config in configs.items()}
    return cache.open_kept("images", digests, make)


def _build_missing(store: ImageStore, configs: Mapping[str, ImageConfig]) -> Sequence[Image]:
    return [asyncio.run(build_image(name, config, store=store)) for name, config in configs.items()]
