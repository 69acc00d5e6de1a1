"""A machine between two steps of a recipe becomes a layer (store/layers.py), named by all that it was made of."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from vmfork.adopt.thaw import find_watchers
from vmfork.adopt.todo import Thaw
from vmfork.errors import VMForkError
from vmfork.host.thread import in_thread
from vmfork.store.ram_file import copy_ram
from vmfork.template.publish import publish
from vmfork.template.recipe import Recipe
from vmfork.template.scratch import StagedDisk
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.image import DiskStore
    from vmfork.machine.plan import Plan
    from vmfork.machine.running import Running
    from vmfork.store import Staging
    from vmfork.store.layers import LayerStore
    from vmfork.store.manifest import DoneStep

_log = logging.getLogger("vmfork")

# Raised with every change of what is in a layer, or of how steps are done.
_FORMAT = 1
_RESUME_LIMIT_S = 30.0


def name_layers(plan: Plan, pins: Sequence[str]) -> tuple[str, ...]:
    """What the machine is called once it is booted, and after each step: by all that it was made of."""
    made_of = json.dumps([_FORMAT, dict(plan.traits), asdict(plan.hardware), plan.reseed], sort_keys=True)
    return tuple(hashlib.sha256(f"{made_of} {pin}".encode()).hexdigest() for pin in ("", *pins))


async def keep_layer(
    name: str,
    running: Running,
    memory_fd: int,
    *,
    store: LayerStore,
    done: Sequence[DoneStep],
    layers: Sequence[str],
    disks: DiskStore,
) -> bool:
    """The machine as it is now is the layer `name`, if there is room for it; it runs on.

    `memory_fd` is the file that it has its RAM in. It stands still while that is copied. Raises what pausing a
    machine raises; a layer that cannot be kept for want of memory is no error.
    """
    need_mib = -(-os.fstat(memory_fd).st_blocks * 512 // MIB)
    staging = await store.stage(name, memory_bytes=running.hardware.memory_mib * MIB, need_mib=need_mib)
    if staging is None:
        return False
    async with staging:
        watchers = await find_watchers(running.agent)
        try:
            await _copy(running, memory_fd, staging)
            # Its client spoke to the agent meanwhile: whoever goes on from here greets it anew.
            todo = Thaw(watchers=watchers, greets=True)
            await publish(
                staging,
                running.facts,
                Recipe(),
                todo=todo,
                timings={},
                steps=done,
                layers=layers,
                disk=StagedDisk(disks),
            )
        except OSError as error:  # its memory was there a moment ago
            if isinstance(error, VMForkError):  # a deadline is a TimeoutError, and that an OSError
                raise
            _log.info("layer %s was not kept: %s", name, error)
            return False
    return True


async def _copy(running: Running, memory_fd: int, staging: Staging) -> None:
    """The machine is in the staging folder as it was while it stood still, and runs on, also after an error."""
    await running.pause()
    try:
        await running.machine.save_state(staging.state_path)
        await in_thread(lambda _: copy_ram(memory_fd, staging.memory_fd))
    finally:
        await running.resume(timeout_s=_RESUME_LIMIT_S)
