"""The guest image for tests under KVM: built and tried out on this host, and kept for a week."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hosts import cache
from vmfork.config import ImageConfig, Instance, Places, VMConfig
from vmfork.image import ImageStore, recipe
from vmfork.image.build import build_image
from vmfork.image.recipe import find_agent
from vmfork.machine.prepare import try_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.machine.plan import Plan

_NAME = "default"


@contextmanager
def open_plan() -> Iterator[Plan]:
    """In the block the image exists, with its least memory, and the plan says whether this host's KVM runs it.

    What is found out of KVM is added to the kept folder, and holds as long as vmfork lets it.
    """

    def make(folder: Path) -> None:
        asyncio.run(build_image(_NAME, ImageConfig(), store=ImageStore(folder / "images")))

    digest = recipe.compute_digest(ImageConfig(), find_agent().read_bytes())
    with (
        cache.open_kept("image", digest, make) as home,
        tempfile.TemporaryDirectory(prefix="vmfork-hosts-", dir="/dev/shm") as runtime,
    ):
        places = Places(home=home, runtime=Path(runtime))
        image = ImageStore(places.images).open(_NAME)
        yield asyncio.run(try_out(image, VMConfig(), Instance(places)))
