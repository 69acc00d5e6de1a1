"""A running machine is given another number of CPUs and another size of memory, and its guest has them.

What it can grow by was provided for when it was booted (`max_cpus`, `max_memory_mib`). CPUs are parked and brought
online through sysfs; memory is plugged in, piece by piece, and the last piece is the first to go.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, FitError, GuestError, HostError, VMForkError
from vmfork.journal import about
from vmfork.machine.growth import plan_change
from vmfork.machine.hotplug import Steps, add_memory, read_block_mib, remove_memory, set_cpus
from vmfork.machine.room import add_to_ticket, ticket_kept
from vmfork.units import format_mib

if TYPE_CHECKING:
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.growth import Change
    from vmfork.machine.running import Running

_log = logging.getLogger("vmfork")

# Measured under TCG: a CPU comes online in 0.1 s, memory in 0.1 s and 0.1 s more for each 2 GiB; a CPU goes offline in
# 0.15 s, memory in 0.05 s.
FIT_LIMIT_S = 60.0


async def fit(
    running: Running, *, cpus: int | None = None, memory_mib: int | None = None, timeout_s: float = FIT_LIMIT_S
) -> None:
    """The guest has `cpus` CPUs online and `memory_mib` MiB: it was asked, and the machine's facts say so.

    `None` leaves a size as it is. More memory comes in whole blocks (128 MiB on x86), rounded up; less is what is left
    without the pieces that came last. Raises `ConfigError` when the machine cannot have the size, `NoRoom`
    when the host has not that much memory to give, and `GuestError` when the machine stands still; nothing was done
    then. Raises `FitError` when the guest has not the size within `timeout_s` seconds, or keeps what it is to give
    back. The machine has its old size again, or, where `rolled_back` is false, must be closed. On cancel it is given
    its old size again, as far as the guest takes the steps back.
    """
    async with running.resizing:
        with ticket_kept(running.folder):
            await _fit(running, cpus=cpus, memory_mib=memory_mib, timeout_s=timeout_s)


async def _fit(running: Running, *, cpus: int | None, memory_mib: int | None, timeout_s: float) -> None:
    machine, agent = running.machine, running.agent
    if running.stands_still:
        raise GuestError(f"VM {running.id} is paused", hint="resume it first")
    before = running.facts.hardware
    change = plan_change(before, cpus=cpus, memory_mib=memory_mib)
    wanted = f"{change.cpus} CPUs and {format_mib(change.memory_of(before))}"
    steps = Steps()
    try:
        async with asyncio.timeout(timeout_s):
            if change.added_mib:
                block_mib = await read_block_mib(agent)
                change = plan_change(before, cpus=cpus, memory_mib=memory_mib, block_mib=block_mib)
                await add_to_ticket(running.folder, change.added_mib)
            if cpus is not None:
                await set_cpus(agent, before, change.cpus, steps)
            if change.added_mib:
                await add_memory(machine, agent, change.added_mib, steps)
            elif change.removed:
                await remove_memory(machine, agent, change.removed, steps)
    except (VMForkError, TimeoutError) as error:
        done = bool(steps)
        left = await steps.take_back()
        if isinstance(error, (ConfigError, HostError)) and not done:
            raise
        late = isinstance(error, TimeoutError) and not isinstance(error, VMForkError)
        reason = f"it took longer than {timeout_s:g} s" if late else getattr(error, "reason", str(error))
        log = error.details() if isinstance(error, VMForkError) else ""
        raise FitError(wanted, reason, left=left, log=log) from error
    except BaseException:
        await steps.take_back()
        raise
    after = _changed(before, change)
    if change.removed:
        await add_to_ticket(running.folder, after.memory_mib - before.memory_mib)
    if memory_mib is not None and after.memory_mib != memory_mib:
        told = "VM %s has %d MiB for %d asked: its guest takes whole blocks"
        _log.info(told, running.id, after.memory_mib, memory_mib)
    running.change_hardware(after)
    said = about("machine.resized", vm_id=running.id, template=running.template)
    _log.info("VM %s has %d CPUs and %d MiB", running.id, after.cpus, after.memory_mib, extra=said)


def _changed(before: Hardware, change: Change) -> Hardware:
    pieces = (*before.added_mib, change.added_mib) if change.added_mib else before.added_mib
    kept = pieces[: len(pieces) - change.removed]
    return replace(before, cpus=change.cpus, memory_mib=change.memory_of(before), added_mib=kept)
