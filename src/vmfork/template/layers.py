"""Machines as they were after a step of a recipe, kept so that the next build begins behind it.

```
RUNTIME/layers/DIGEST/    as a template's folder (store/store.py); its name is what the machine was made of
```
A layer is RAM and device state of a machine that went on with the next step. Nobody forks it but a build, so it is left
out wherever templates are listed. It is a cache: any of them may go at any time, and the one used least recently does,
when all of them take more than a tenth of the host's memory, or a template has no room beside them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from vmfork.adopt.thaw import find_watchers
from vmfork.adopt.todo import Thaw
from vmfork.errors import HostError, StoreBusy, TemplateError, VMForkError
from vmfork.host import facts
from vmfork.host.thread import in_thread
from vmfork.store import TemplateStore
from vmfork.store.ram_file import copy_ram
from vmfork.template.publish import publish
from vmfork.template.recipe import Recipe
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import Places
    from vmfork.machine.plan import Plan
    from vmfork.machine.running import Running
    from vmfork.store import OpenTemplate, Staging
    from vmfork.store.manifest import DoneStep

_log = logging.getLogger("vmfork")

# Raised with every change of what is in a layer, or of how steps are done.
_FORMAT = 1
# All layers together take at most this part of the host's memory.
_MOST_PART = 10
_RESUME_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Layer:
    """One that is kept: what it is called, the memory it takes, when it was last used (s since 1970)."""

    name: str
    mib: int
    used_at: float


def name_layers(plan: Plan, pins: Sequence[str]) -> tuple[str, ...]:
    """What the machine is called once it is booted, and after each step: by all that it was made of."""
    made_of = json.dumps([_FORMAT, dict(plan.traits), asdict(plan.hardware), plan.reseed], sort_keys=True)
    return tuple(hashlib.sha256(f"{made_of} {pin}".encode()).hexdigest() for pin in ("", *pins))


class Layers:
    """The layers of one instance."""

    def __init__(self, places: Places) -> None:
        self._store = TemplateStore(places.layers)

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

    async def keep(
        self, name: str, running: Running, memory_fd: int, *, done: Sequence[DoneStep], layers: Sequence[str]
    ) -> bool:
        """The machine as it is now is the layer `name`, if there is room for it; it runs on.

        `memory_fd` is the file that it has its RAM in. It stands still while that is copied. Raises what pausing a
        machine raises; a layer that cannot be kept for want of memory is no error.
        """
        need_mib = -(-os.fstat(memory_fd).st_blocks * 512 // MIB)
        if need_mib > _find_most_mib():
            return False
        await self.make_room(need_mib=need_mib)
        try:
            staging = await self._store.stage(name, memory_bytes=running.hardware.memory_mib * MIB)
        except (HostError, TemplateError, StoreBusy) as error:
            _log.info("layer %s was not kept: %s", name, error)
            return False
        async with staging:
            watchers = await find_watchers(running.agent)
            try:
                await _copy(running, memory_fd, staging)
                # Its client spoke to the agent meanwhile: whoever goes on from here greets it anew.
                todo = Thaw(watchers=watchers, greets=True)
                await publish(staging, running.facts, Recipe(), todo=todo, timings={}, steps=done, layers=layers)
            except OSError as error:  # its memory was there a moment ago
                if isinstance(error, VMForkError):  # a deadline is a TimeoutError, and that an OSError
                    raise
                _log.info("layer %s was not kept: %s", name, error)
                return False
        return True

    async def make_room(self, *, need_mib: int, available_mib: int | None = None) -> None:
        """Layers that are to come have `need_mib` MiB of what layers may take; those used least recently went.

        With `available_mib` they went until the host has that much to give.
        """
        for layer in sorted(self.list_all(), key=lambda layer: layer.used_at):
            held = sum(each.mib for each in self.list_all())
            is_short = available_mib is not None and facts.available_memory_bytes() // MIB < available_mib
            if held + need_mib <= _find_most_mib() and not is_short:
                return
            await self.remove(layer.name)

    async def remove(self, name: str) -> None:
        """There is no such layer, unless another process makes it just now."""
        with suppress(TemplateError, StoreBusy):
            await self._store.remove(name)

    async def remove_all(self) -> None:
        """There is none, but those that others make just now."""
        for layer in self.list_all():
            await self.remove(layer.name)

    def list_all(self) -> list[Layer]:
        """All that there are. Whatever lost its owner is swept first."""
        found = []
        for name in self._store.list_names():
            with suppress(TemplateError, StoreBusy):
                mib = -(-self._store.read_manifest(name).memory_allocated_bytes // MIB)
                found.append(Layer(name, mib, self._store.find_last_use(name)))
        return found


async def _copy(running: Running, memory_fd: int, staging: Staging) -> None:
    """The machine is in the staging folder as it was while it stood still, and runs on, also after an error."""
    await running.pause()
    try:
        await running.machine.save_state(staging.state_path)
        await in_thread(lambda _: copy_ram(memory_fd, staging.memory_fd))
    finally:
        await running.resume(timeout_s=_RESUME_LIMIT_S)


def _find_most_mib() -> int:
    """What all layers together may take of this host's memory."""
    return facts.total_memory_bytes() // MIB // _MOST_PART
