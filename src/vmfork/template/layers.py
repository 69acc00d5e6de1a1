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
from vmfork.errors import HostError, VMForkError
from vmfork.host.folders import count_mib
from vmfork.host.thread import in_thread
from vmfork.store.ram_file import copy_ram
from vmfork.template.publish import publish
from vmfork.template.recipe import Recipe
from vmfork.template.scratch import staged_disk
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import Instance
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
    instance: Instance,
) -> bool:
    """The machine as it is now is the layer `name`, if there is room for it; it runs on.

    `memory_fd` is the file that it has its RAM in. It stands still while that is copied, and what is on the disk that
    it writes to, where it has one. Raises what pausing a machine raises; a layer that cannot be kept for want of memory
    or space is no error.
    """
    hardware = running.hardware
    need_mib = count_mib(os.fstat(memory_fd))
    # What its disk takes is known when that is copied.
    disk_mib = min(hardware.scratch_mib, 1)
    staging = await store.stage(name, memory_bytes=hardware.memory_mib * MIB, need_mib=need_mib, disk_mib=disk_mib)
    if staging is None:
        return False
    async with staging:
        watchers = await find_watchers(running.agent)
        try:
            with staged_disk(hardware, instance) as disk:
                if not await _copy(running, memory_fd, staging, disk.fd):
                    return False
                if disk.fd is not None:
                    disk_mib = count_mib(os.fstat(disk.fd))
                    if not await store.make_room(need_mib, disk_mib=disk_mib):
                        _log.info("layer %s was not kept: its disk takes %d MiB", name, disk_mib)
                        return False
                # Its client spoke to the agent meanwhile: whoever goes on from here greets it anew.
                todo = Thaw(watchers=watchers, greets=True)
                await publish(
                    staging, running.facts, Recipe(), todo=todo, timings={}, steps=done, layers=layers, disk=disk
                )
        except OSError as error:  # its memory was there a moment ago, or the host's disk is full
            if isinstance(error, VMForkError):  # a deadline is a TimeoutError, and that an OSError
                raise
            _log.info("layer %s was not kept: %s", name, error)
            return False
    return True


async def _copy(running: Running, memory_fd: int, staging: Staging, disk_fd: int | None) -> bool:
    """The machine is in the staging folder as it was while it stood still, and runs on, also after an error.

    What was on its disk then is in `disk_fd`, where it has one. False where the host has no space for that.
    """
    await running.pause()
    try:
        await running.machine.save_state(staging.state_path)
        await in_thread(lambda _: copy_ram(memory_fd, staging.memory_fd))
        return disk_fd is None or await _copy_disk(running, disk_fd)
    finally:
        await running.resume(timeout_s=_RESUME_LIMIT_S)


async def _copy_disk(running: Running, disk_fd: int) -> bool:
    try:
        await running.machine.copy_scratch(disk_fd)
    except HostError as error:  # the guest writes nothing meanwhile, and so misses nothing
        _log.info("a layer was not kept: %s", error)
        return False
    return True
