"""The least memory an image's guest needs: found by booting it, once on each host."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.config import VMConfig
from vmfork.config.values import MIN_MEMORY_MIB
from vmfork.errors import ExecError, GuestError, LaunchError
from vmfork.host.lock import FileLock
from vmfork.hypervisor.qemu import board_of
from vmfork.image import ImageStore, write_least
from vmfork.machine.booted import boot_machine
from vmfork.machine.plan import make_plan
from vmfork.machine.stall import unless_stuck
from vmfork.progress import Progress
from vmfork.units import MIB, format_mib
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.config import Instance
    from vmfork.errors import VMForkError
    from vmfork.image import Image
    from vmfork.machine.plan import Plan

_log = logging.getLogger("vmfork")

# Each CPU takes memory of its own: the default image boots in 220 MiB with one and in 224 with four (QEMU 7.2, TCG,
# kernel 6.12.118). What is measured with four holds for fewer.
_CPUS = 4
_STEP_MIB = 4
# On top of what booted, for other emulators and accelerators (docs/decisions/0010).
_MARGIN_MIB = 8
# Where the search begins, above what the files take. The kernel's own part changes from release to release, and this
# guess decides nothing but how many boots it takes: two when it is right.
_FIRST_GUESS_MIB = 80
# A guest that does not boot in this many times the first guess has another trouble than memory.
_HOPELESS = 4
# Another process may be measuring the same image, a boot after the other, on a host that emulates slowly.
_WAIT_S = 1800.0


def ample_memory_mib(image: Image) -> int:
    """More MiB than the image's guest can need, for a boot in which memory must not be the question."""
    return 2 * _files_mib(image) + 256


async def ensure_least(plan: Plan, *, instance: Instance) -> Plan:
    """The plan, with its image's `min_memory_mib` known: measured by booting unless this host has done so before.

    Measuring takes several small boots, about 3 s each under TCG. Of two processes the second waits, and uses what the
    first found.
    Raises `LaunchError` or `GuestError` when the guest does not boot whatever it is given.
    """
    image, images = plan.image, instance.places.images
    if image.min_memory_mib is not None:
        return plan
    holder = f"process {os.getpid()}"
    lock = await FileLock.acquire(ImageStore(images).lock_path(f"{image.digest}.memory"), holder=holder, wait_s=_WAIT_S)
    with lock or nullcontext():
        known = await asyncio.to_thread(ImageStore(images).open, image.name)
        if known.digest == image.digest and known.min_memory_mib is not None:
            return replace(plan, image=known)
        instance.progress(Progress(task="memory", step="measuring the least memory that the image boots in"))
        least = await _measure(plan, instance)
        by = f"QEMU {plan.binary.version}, {plan.hardware.accel}, {plan.hardware.machine}"
        try:
            write_least(image.kernel.parent, least, measured=f"booted with {_CPUS} CPUs by {by}")
        except OSError as error:
            _log.warning("what image %s needs is not kept, and is measured again next time: %s", image.name, error)
    instance.progress(Progress(task="memory", step=f"the guest needs {format_mib(least)} or more"))
    _log.info("image %s needs %d MiB or more", image.name, least)
    return replace(plan, image=replace(image, min_memory_mib=least))


async def _measure(plan: Plan, instance: Instance) -> int:
    image, accel, kind = plan.image, plan.hardware.accel, board_of(plan.hardware.machine).kind

    async def try_boot(memory_mib: int) -> VMForkError | None:
        config = VMConfig(cpus=_CPUS, memory_mib=memory_mib, cpu_model=plan.hardware.cpu_model, machine=kind)
        try:
            trial = await make_plan(config, image=image, binary=plan.binary, accel=accel)
            await _boot_and_use(replace(trial, policy=plan.policy, limits=plan.limits), instance)
        except (LaunchError, GuestError) as error:
            return error
        return None

    return await find_least(try_boot, floor_mib=_files_mib(image)) + _MARGIN_MIB


async def find_least(try_boot: Callable[[int], Awaitable[VMForkError | None]], *, floor_mib: int) -> int:
    """The least size in MiB, in steps of 4, at which `try_boot` gives no error: one that a machine can have.

    It is more than `floor_mib`. Gallops up from a guess until a size boots, then down until one fails, and halves what
    is between. Raises the last error when nothing boots.
    """
    size = _round_up(floor_mib + _FIRST_GUESS_MIB)
    hopeless = _HOPELESS * size
    lowest = max(_round_up(floor_mib), MIN_MEMORY_MIB) - _STEP_MIB
    failed, jump = lowest, _STEP_MIB
    while (error := await try_boot(size)) is not None:
        if size >= hopeless:
            raise error
        failed, jump = size, 2 * jump
        size += jump
    jump, halving = _STEP_MIB, failed > lowest
    while size - failed > _STEP_MIB:
        trial = _round_up((failed + size) // 2) if halving else max(size - jump, failed + _STEP_MIB)
        if await try_boot(trial) is None:
            size, jump = trial, 2 * jump
        else:
            failed, halving = trial, True
    return size


async def _boot_and_use(plan: Plan, instance: Instance) -> None:
    """The machine booted, took an identity and ran a program, and is gone."""
    async with (await boot_machine(plan, instance=instance, watch=unless_stuck)).running as running:
        with suppress(ExecError):  # an image may do without it
            await running.agent.exec(Command(["true"], user="root"), timeout_s=plan.boot_timeout_s)


def _files_mib(image: Image) -> int:
    """What the guest holds at once while it unpacks: the archive and the files in it."""
    return -(-(image.unpacked_bytes + image.initramfs_bytes) // MIB)


def _round_up(size_mib: int) -> int:
    return -(-size_mib // _STEP_MIB) * _STEP_MIB
