"""Images that are imported where they are missing, or where their source has changed; what is the same is kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from typing import TYPE_CHECKING

from vmfork.config.source import LOCAL_KINDS
from vmfork.container.importing import check_import, check_reader, identify, import_image, name_recipe
from vmfork.container.origin import Origin
from vmfork.errors import ImageCorrupt, ImageNotFound
from vmfork.host.thread import check_wanted, in_thread
from vmfork.image import recipe
from vmfork.image.build import explained, lock_subject
from vmfork.progress import ProgressListener, ignore_progress

if TYPE_CHECKING:
    import threading

    from vmfork.config.values import RootChoice
    from vmfork.image import Image
    from vmfork.image.store import ImageStore

_DIGITS = 12
# Room in a name (`check_name`) for what tells images of one word apart.
_MOST_OF_WORD = 40
_NOT_OF_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def name_source(source: str) -> str:
    """What the image of a source is called where nobody names it: `WORD.from-DIGEST`, by the text of the source."""
    origin = Origin.parse(source)
    path = origin.place if origin.kind in LOCAL_KINDS else origin.place.partition("@")[0]
    last = path.rstrip("/").rpartition("/")[2]
    if origin.kind not in LOCAL_KINDS:
        last = last.partition(":")[0]
    word = _NOT_OF_NAME.sub("-", last).strip("._-")[:_MOST_OF_WORD] or "image"
    return f"{word}.from-{hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:_DIGITS]}"


def check_ensured(source: str, name: str, *, store: ImageStore, root: RootChoice = "auto", again: bool = False) -> None:
    """Raises what `ensure_imported` raises of what can be seen before the image of its kernel is there."""
    origin = check_import(source, name, root)
    if again or store.find_digest(name) is None:  # what is there needs nothing that would fetch it
        check_reader(origin)


async def ensure_imported(
    source: str,
    name: str,
    *,
    kernel: Image,
    store: ImageStore,
    root: RootChoice = "auto",
    again: bool = False,
    progress: ProgressListener = ignore_progress,
) -> Image:
    """`name` leads to an image of what is at `source`: the one that it led to, or a new one where that is another.

    A layout, an archive and a folder are looked at each time; a registry, and a tool that has it, only where there is
    no image of that source, and `again`. Two processes that import the same take turns, and the second uses what the
    first made. Raises what `import_image` raises; the name leads where it led before then.
    """
    origin = Origin.parse(source)
    agent = await asyncio.to_thread(recipe.find_agent().read_bytes)

    async def find() -> Image | None:
        try:
            found = await asyncio.to_thread(store.open, name)
        except (ImageNotFound, ImageCorrupt):
            return None
        return found if await in_thread(lambda stop: _is_current(found, origin, agent, stop)) else None

    def _is_current(found: Image, origin: Origin, agent: bytes, stop: threading.Event) -> bool:
        if origin.kind in LOCAL_KINDS:
            return found.recipe == name_recipe(identify(origin, lambda: check_wanted(stop)), agent, kernel, root)
        return source in found.sources and found.recipe == name_recipe(found.source_digest, agent, kernel, root)

    if not again and (image := await find()) is not None:
        return image
    with explained(store.folder):
        store.make()
        subject = hashlib.sha256(json.dumps(["import", name, source]).encode()).hexdigest()
        lock, waited = await lock_subject(subject, store, progress)
    with lock:
        if (waited or not again) and (image := await find()) is not None:
            return image
        return await import_image(source, name, kernel=kernel, store=store, root=root, progress=progress)
