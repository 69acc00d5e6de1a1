"""Machines as they were after a step of a recipe, kept so that the next build goes on from there: a cache.

```
RUNTIME/layers/DIGEST/    as a template's folder (store/store.py); its name is what the machine was made of
```
Nobody forks a layer but a build, so it is left out wherever templates are listed. Any of them may go at any time. The
one used least recently does, when all of them take more than they may, and whenever a machine or a template has no room
beside them. One that cannot be read, damaged or of another vmfork, goes before all others.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

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
from vmfork.host.folders import find_info
from vmfork.store.folder import CURRENT
from vmfork.store.staging import ShortOfMemory
from vmfork.store.store import TemplateStore
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from vmfork.store.opened import OpenTemplate
    from vmfork.store.staging import Staging

T = TypeVar("T")

# All layers together take at most this part of the host's memory, unless another limit was given.
_MOST_PART = 10


@dataclass(frozen=True, slots=True)
class Layer:
    """One that is kept: what it is called, the memory it takes, when it was last used (s since 1970)."""

    name: str
    mib: int
    used_at: float


class LayerStore:
    """The layers below one folder. Those that are made here leave all together at `most_mib` MiB (`None`: a tenth)."""

    def __init__(self, folder: Path, *, most_mib: int | None = None) -> None:
        self._store = TemplateStore(folder)
        self._given_mib = most_mib

    @property
    def _most_mib(self) -> int:
        return facts.total_memory_bytes() // MIB // _MOST_PART if self._given_mib is None else self._given_mib

    def list_all(self) -> list[Layer]:
        """All that there are, the one used least recently first. Whatever lost its owner is swept first."""
        found = []
        for name in self._store.list_names():
            with suppress(TemplateNotFound, TemplateElsewhere, StoreBusy):
                found.append(self._look(name))
        return sorted(found, key=lambda layer: layer.used_at)

    def _look(self, name: str) -> Layer:
        try:
            size_bytes = self._store.read_manifest(name).memory_allocated_bytes
        except (TemplateCorrupt, TemplateStale):  # nobody goes on from it, and it takes memory all the same
            info = find_info(self._store.folder / name / CURRENT / "memory")
            return Layer(name, 0 if info is None else -(-info.st_blocks * 512 // MIB), 0.0)
        return Layer(name, -(-size_bytes // MIB), self._store.find_last_use(name))

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

    async def stage(self, name: str, *, memory_bytes: int, need_mib: int) -> Staging | None:
        """An empty layer of that name that only we see; those used least recently went for `need_mib` MiB of it.

        One of that name that is damaged, or of another vmfork, went too. `None` where it cannot be kept: others make
        it, or it is there, or has no room.
        """
        if need_mib > self._most_mib:
            return None
        await self.make_room(need_mib)
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

    async def make_room(self, need_mib: int) -> None:
        """Layers that are to come have `need_mib` MiB of what layers may take; those used least recently went."""
        kept = self.list_all()
        held_mib = sum(layer.mib for layer in kept)
        for layer in kept:
            if held_mib + need_mib <= self._most_mib:
                return
            await self.remove(layer.name)
            held_mib -= layer.mib

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
        """There is no such layer, unless another process makes or opens it just now: false then, or if none was."""
        try:
            await self._store.remove(name)
        except (TemplateError, StoreBusy):
            return False
        return True

    async def remove_all(self) -> None:
        """There is none, but those that others make just now."""
        for layer in self.list_all():
            await self.remove(layer.name)
