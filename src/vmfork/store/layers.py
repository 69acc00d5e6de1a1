"""Machines as they were after a step of a recipe, kept so that the next build goes on from there: a cache.

```
RUNTIME/layers/DIGEST/    as a template's folder (store/store.py); its name is what the machine was made of
HOME/disks/SHA256/        what was on the disk that it writes to, where it has one (image/disks.py), held by the layer
```
Nobody forks a layer but a build, so it is left out wherever templates are listed. Any of them may go at any time. The
one used least recently does, when all of them take more than they may, and whenever a machine or a template has no room
beside them. One that cannot be read, damaged or of another vmfork, goes before all others.

Memory and disks are two things to be short of, each with a limit of its own. What is on a layer's disk is whole in
itself: nothing that was made of the layer, or before it, reads from it once its machine has ended.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from vmfork.errors import (
    HostError,
    StoreBusy,
    TemplateCorrupt,
    TemplateElsewhere,
    TemplateError,
    TemplateNotFound,
    TemplateStale,
)
from vmfork.host import facts
from vmfork.host.folders import count_mib, find_info
from vmfork.host.thread import in_thread
from vmfork.image import DiskStore
from vmfork.store.folder import CURRENT
from vmfork.store.staging import ShortOfMemory
from vmfork.store.store import TemplateStore
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from vmfork.config import Places
    from vmfork.store.manifest import Manifest
    from vmfork.store.opened import OpenTemplate
    from vmfork.store.staging import Staging

T = TypeVar("T")

# All layers together take at most this part of the host's memory, and of what would be free without them where disks
# are, unless other limits were given.
_MOST_PART = 10


@dataclass(frozen=True, slots=True)
class Layer:
    """One that is kept: its name, what it takes of memory and of disks, when it was last used (s since 1970)."""

    name: str
    mib: int
    used_at: float
    disk_mib: int = 0


class LayerStore:
    """The layers below one folder. Those that are made here leave all together at `most_mib` MiB (`None`: a tenth).

    So they do at `most_disk_mib` MiB of `disks`. Without these no disk is looked at: what a layer had there is left to
    the next who sweeps them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        disks: DiskStore | None = None,
        most_mib: int | None = None,
        most_disk_mib: int | None = None,
    ) -> None:
        self._store = TemplateStore(folder)
        self._disks = disks
        self._given_mib = most_mib
        self._given_disk_mib = most_disk_mib

    @classmethod
    def of(cls, places: Places, *, most_mib: int | None = None, most_disk_mib: int | None = None) -> Self:
        """The layers of the instance, with their disks."""
        disks = DiskStore(places.disks)
        return cls(places.layers, disks=disks, most_mib=most_mib, most_disk_mib=most_disk_mib)

    @property
    def _most_mib(self) -> int:
        return facts.total_memory_bytes() // MIB // _MOST_PART if self._given_mib is None else self._given_mib

    def _find_most_disk_mib(self, held_mib: int) -> int:
        """What layers may take of disks, of which they take `held_mib` now."""
        if self._given_disk_mib is not None or self._disks is None:
            return self._given_disk_mib or 0
        return (facts.free_space_bytes(self._disks.folder) // MIB + held_mib) // _MOST_PART

    def list_all(self) -> list[Layer]:
        """All that there are, the one used least recently first. Whatever lost its owner is swept first."""
        found = []
        for name in self._store.list_names():
            with suppress(TemplateNotFound, TemplateElsewhere, StoreBusy):
                found.append(self._look(name))
        return sorted(found, key=lambda layer: layer.used_at)

    def _look(self, name: str) -> Layer:
        try:
            manifest = self._store.read_manifest(name)
        except (TemplateCorrupt, TemplateStale):  # nobody goes on from it, and it takes memory all the same
            return Layer(name, count_mib(find_info(self._store.folder / name / CURRENT / "memory")), 0.0)
        mib = -(-manifest.memory_allocated_bytes // MIB)
        return Layer(name, mib, self._store.find_last_use(name), self._measure_disk(manifest))

    def _measure_disk(self, manifest: Manifest) -> int:
        if self._disks is None or not manifest.disk_sha256:
            return 0
        return count_mib(find_info(self._disks.locate(manifest.disk_sha256)))

    def open_last(self, names: Sequence[str]) -> tuple[int, OpenTemplate] | None:
        """The last of these layers that there is, and its number, for the caller to close; `None` where there is none.

        It stays usable when it is removed meanwhile.
        """
        for number in reversed(range(len(names))):
            with suppress(TemplateError, StoreBusy):
                opened = self._store.open(names[number])
                self._store.note_use(names[number])
                return number, opened
        return None

    async def stage(self, name: str, *, memory_bytes: int, need_mib: int, disk_mib: int = 0) -> Staging | None:
        """An empty layer of that name that only we see; those used least recently went for `need_mib` MiB of it.

        So they did for `disk_mib` MiB of its disk: more may come. One of that name that is damaged, or of another
        vmfork, went too. `None` where it cannot be kept: others make it, or it is there, or has no room.
        """
        if not await self.make_room(need_mib, disk_mib=disk_mib):
            return None
        await self._remove_unusable(name)
        try:
            return await self._store.stage(name, memory_bytes=memory_bytes)
        except (HostError, TemplateError, StoreBusy):
            return None

    async def _remove_unusable(self, name: str) -> None:
        try:
            with self._store.open(name):
                pass
        except (TemplateCorrupt, TemplateStale):
            await self.remove(name)
        except (TemplateError, StoreBusy):
            pass  # there is none, or it is another's just now

    async def make_room(self, need_mib: int, *, disk_mib: int = 0) -> bool:
        """Layers that are to come have `need_mib` MiB of what layers may take, and `disk_mib` of what their disks may.

        Those used least recently went, of those that have what is short. False, and none is gone, where it is more than
        all may take.
        """
        kept = self.list_all()
        held_mib, held_disk_mib = sum(layer.mib for layer in kept), sum(layer.disk_mib for layer in kept)
        most_mib, most_disk_mib = self._most_mib, self._find_most_disk_mib(held_disk_mib)
        if need_mib > most_mib or disk_mib > most_disk_mib:
            return False
        for layer in kept:
            is_short = held_mib + need_mib > most_mib
            is_short_of_disk = disk_mib > 0 and held_disk_mib + disk_mib > most_disk_mib
            if is_short or (is_short_of_disk and layer.disk_mib):
                await self.remove(layer.name)
                held_mib, held_disk_mib = held_mib - layer.mib, held_disk_mib - layer.disk_mib
        return True

    async def give_way(self) -> bool:
        """The layer used least recently is gone; false where none could go."""
        for layer in self.list_all():
            if await self.remove(layer.name):
                return True
        return False

    async def giving_way(self, make: Callable[[], Awaitable[T]]) -> T:
        """What `make` gives. Layers went, one by one, as long as the host had too little memory for it."""
        while True:
            try:
                return await make()
            except ShortOfMemory:
                if not await self.give_way():
                    raise

    async def remove(self, name: str) -> bool:
        """There is no such layer, unless another process makes or opens it just now: false then, or if none was.

        Its disk is gone too, where no machine reads from it: then it is the next sweep's.
        """
        try:
            await self._store.remove(name)
        except (TemplateError, StoreBusy):
            return False
        if (disks := self._disks) is not None:
            await in_thread(lambda _: disks.sweep())
        return True

    async def remove_all(self) -> None:
        """There is none, but those that others make just now."""
        for layer in self.list_all():
            await self.remove(layer.name)
