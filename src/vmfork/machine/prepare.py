"""From a configuration to a plan that can be carried out here: found, checked, decided before anything is started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmfork.config import DEFAULT_IMAGE, ImageConfig
from vmfork.errors import ConfigError, ImageCorrupt, ImageNotFound
from vmfork.host import facts
from vmfork.image import ImageStore
from vmfork.image.build import build_image
from vmfork.late import import_late
from vmfork.machine.accelerator import decide_accel
from vmfork.machine.board import check_board, check_card, check_disk
from vmfork.machine.emulator import choose_emulator, find_emulator
from vmfork.machine.growth import raise_to_least
from vmfork.machine.least import ensure_least
from vmfork.machine.plan import make_plan
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from pathlib import Path

    from vmfork.config import Instance, VMConfig
    from vmfork.image import Image
    from vmfork.machine.plan import Plan


async def prepare(config: VMConfig, instance: Instance) -> Plan:
    """A plan that can be carried out here.

    The image `default` is built where it is missing; any other must exist (`ImageNotFound`). Where nobody said how much
    memory, it is enough for the image. Raises `ConfigError` when the memory is too little, `HostError` when the
    emulator is missing or too old, or when KVM was demanded and does not run the guest.
    """
    _check_host(config)
    await find_emulator(config, places=instance.places)  # before an image is built in vain
    image = await ensure_image(config.image, instance=instance)
    plan = await try_out(image, config, instance)
    least_mib = plan.image.min_memory_mib or 0
    if (raised := raise_to_least(config, least_mib)) is not config:
        _check_host(raised)
        return await make_plan(raised, image=plan.image, binary=plan.binary, accel=plan.hardware.accel)
    if config.memory_mib < least_mib:
        raise ConfigError(
            "vm.memory_mib",
            config.memory_mib,
            f"{format_mib(config.memory_mib)} is too little for image {image.name!r}",
            hint=f"give at least {format_mib(least_mib)}",
        )
    return plan


async def try_out(image: Image, config: VMConfig, instance: Instance) -> Plan:
    """A plan for `config`, with all that only booting the image tells.

    That is an accelerator that runs the image, and the least memory it needs; `config` may have less. Both are found
    out the first time on a host, and remembered. Raises `HostError` and `LaunchError`.
    """
    check_board(config, image)
    check_card(config, image)
    check_disk(config, image)
    binary = await find_emulator(config, places=instance.places)
    accel = await decide_accel(config, image=image, binary=binary, instance=instance)
    binary = await choose_emulator(config, binary, accel=accel, places=instance.places)
    plan = await make_plan(config, image=image, binary=binary, accel=accel)
    return await ensure_least(plan, instance=instance)


def _check_host(config: VMConfig) -> None:
    # More CPUs than the host has share them; memory that it does not have cannot be shared.
    total_mib = facts.total_memory_bytes() // MIB
    if config.memory_mib > total_mib:
        raise ConfigError(
            "vm.memory_mib",
            config.memory_mib,
            f"{format_mib(config.memory_mib)} were asked for, the host has {format_mib(total_mib)} in all",
            hint=f"give at most {format_mib(total_mib)}, less what the host itself needs",
        )


async def ensure_image(
    name: str, *, made_of: ImageConfig | None = None, instance: Instance, again: bool = False
) -> Image:
    """The image `name`, which is made of `made_of` where that is said; it was made, or made anew, where it was not.

    Where nothing is said, only `default` is built where it is missing or damaged; another is an error. It is made of
    what it was made of before, and follows this vmfork: where that ships another agent, it is built anew. What was
    imported from a registry is looked for there `again` when that is asked for.
    """
    store = ImageStore(instance.places.images)
    if made_of is not None and made_of.source:
        check_ensured = import_late("vmfork.container.kept", "check_ensured")
        check_ensured(made_of.source, name, store=store, root=made_of.root, again=again)
        kernel = await ensure_image(DEFAULT_IMAGE, instance=instance)
        ensure_imported = import_late("vmfork.container.kept", "ensure_imported")
        imported: Image = await ensure_imported(
            made_of.source,
            name,
            kernel=kernel,
            store=store,
            root=made_of.root,
            again=again,
            progress=instance.progress,
        )
        return imported
    if made_of is None and name != DEFAULT_IMAGE:
        return await asyncio.to_thread(store.open, name)
    if made_of is None:
        made_of = await asyncio.to_thread(_read_configuration, name, instance.places.images)
    return await build_image(name, made_of, store=store, progress=instance.progress)


def _read_configuration(name: str, images: Path) -> ImageConfig:
    try:
        image = ImageStore(images).open(name)
    except (ImageNotFound, ImageCorrupt):
        return ImageConfig()
    if image.source:  # it was put there by an earlier vmfork
        return ImageConfig()
    return ImageConfig(suite=image.suite, packages=image.requested, bare=image.bare, root=image.root)
