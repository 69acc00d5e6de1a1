"""From a configuration to a frozen template: stage, boot, warm up, freeze, commit."""

from __future__ import annotations

import logging
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vmfork.config import VMConfig
from vmfork.errors import HostError, ImageNotFound, LaunchError, MachineEnded, TemplateExists
from vmfork.host.thread import in_thread
from vmfork.image import ImageStore
from vmfork.journal import about
from vmfork.machine.prepare import ensure_image, prepare
from vmfork.progress import Progress
from vmfork.recipe.derive import derive_config
from vmfork.recipe.short import expand_steps
from vmfork.store import TemplateStore
from vmfork.store.layers import LayerStore
from vmfork.template.budget import make_room, stage
from vmfork.template.kept import KeptRecipe, find_recipe, is_of_its_size, keeping_recipe
from vmfork.template.making import BuildOptions, Making
from vmfork.template.publish import publish
from vmfork.template.recipe import Recipe
from vmfork.template.recipe_file import read_build
from vmfork.template.scratch import staged_disk
from vmfork.template.source import Source
from vmfork.template.travelling.persisted import bring_back, follow
from vmfork.units import MIB, format_duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vmfork.config import Instance
    from vmfork.machine.plan import Plan
    from vmfork.store import Staging

__all__ = [
    "BuildOptions",
    "Recipe",
    "build_template",
    "ensure_template",
    "expand_steps",
    "read_build",
]

_log = logging.getLogger("vmfork")

BY_DEFAULT = BuildOptions()


async def build_template(
    name: str,
    config: VMConfig,
    recipe: Recipe | None = None,
    *,
    instance: Instance,
    replace: bool = False,
    wait_s: float = 0.0,
    options: BuildOptions = BY_DEFAULT,
    unless: Callable[[], Awaitable[Source | None]] | None = None,
) -> Source:
    """The template `name` is in force, and given. After any error or cancel, what was there before is still in force.

    `unless` is asked when nobody else builds it any more: what it gives is given, and nothing is built.
    Raises `TemplateExists` without `replace`, `StoreBusy`, and `HostError` when the host's memory or the instance's
    budget is short, before anything is booted. Raises `LaunchError`, `ExecError` when a warm-up command failed,
    `HookError`, `SecretsPresent`, and `DeadlineExceeded`.
    """
    wanted = recipe or Recipe()
    recipe = await in_thread(lambda _: wanted.pinned())
    store = TemplateStore(instance.places.templates)
    if replace or store.find_generation(name) is None:
        await make_room(name, config.memory_mib, instance=instance)
    memory_bytes = config.memory_mib * MIB

    async def enlarge() -> None:
        staging.enlarge(plan.hardware.memory_mib * MIB)

    async with await stage(
        store, name, memory_bytes=memory_bytes, instance=instance, replace=replace, wait_s=wait_s
    ) as staging:
        if unless is not None and (made := await unless()) is not None:
            return made
        await _ensure_base(config, recipe, instance, again=not options.cache)
        plan = await _prepare(config, recipe, instance)
        if (ram_mib := plan.hardware.memory_mib) > config.memory_mib:
            await make_room(name, ram_mib, instance=instance)
            await LayerStore.of(instance.places).giving_way(enlarge)
        build = Making(
            plan,
            recipe,
            instance,
            options,
            layers_mib=config.layers_mib,
            layers_disk_mib=config.layers_disk_mib,
        )
        with staged_disk(plan.hardware, instance) as disk:
            async with _out_of_space_named(staging):
                facts, todo = await build.make(staging, disk.fd)
            build.report(f"recording (booted in {format_duration(build.timings['boot_s'])})")
            # The recipe is kept before the template is in force: a template without one would be rebuilt as a bare one.
            with keeping_recipe(name, KeptRecipe.of(recipe, config), places=instance.places):
                await publish(
                    staging,
                    facts,
                    recipe,
                    todo=todo,
                    timings=build.timings,
                    base_image=config.image,
                    steps=build.done,
                    layers=build.layers,
                    disk=disk,
                )
    instance.progress(Progress(task="template", step=f"template {name!r} is ready", fraction=1.0))
    took_s = round(sum(build.timings.values()), 3)
    _log.info("template %r is ready", name, extra=about("template.built", template=name, took_s=took_s))
    source = await Source.open(name, config=config, instance=instance)
    await follow(source, config=config, instance=instance)
    return source


async def ensure_template(
    name: str,
    config: VMConfig | None,
    *,
    instance: Instance,
    wait_s: float,
    recipe: Recipe | None = None,
    kept: KeptRecipe | None = None,
    any_kind: bool = False,
) -> Source:
    """The template `name`. It was built first if `Source.find` gave none. Its size is kept as it is.

    With `recipe`, one that was made by another does not fit, nor one of another size than it says. Without, it is built
    by `kept`, by default the recipe that it was last made by, and from that recipe's configuration when `config` is
    `None`, or with `any_kind`. Raises `TemplateNotFound` when the recipe needs what was not kept. When another process
    is building it, its result is used, after `wait_s` seconds at most.
    """

    if recipe is not None and not recipe.pins:
        made_by = recipe
        recipe = await in_thread(lambda _: made_by.pinned())  # its files are not read by the event loop

    async def find() -> Source | None:
        found = await Source.find(name, config, instance=instance, any_kind=any_kind)
        if found is None or recipe is None:
            return found
        return found if found.recipe == recipe.name and is_of_its_size(name, recipe, places=instance.places) else None

    await bring_back(name, config or VMConfig(), instance=instance)
    if (found := await find()) is not None and found.manifest.came_from:
        return found  # it is held to no image of this host, and needs none
    if recipe is not None and config is not None and recipe.base is not None:
        await _ensure_base(config, recipe, instance)  # a template of what its image was is stale
        found = await find()
    if found is not None:
        return found
    wanted = config or VMConfig()
    if recipe is None and (kept := kept or find_recipe(name, places=instance.places)) is not None:
        recipe = kept.to_recipe(name)
        if config is None or any_kind:
            wanted = kept.config if config is None else kept.config.made_as(config)
    try:
        return await build_template(name, wanted, recipe, instance=instance, wait_s=wait_s)
    except TemplateExists:
        pass  # it was built while we waited, or it is there but does not fit
    if (found := await find()) is not None:
        return found
    # Another that found the same, at the same time, may have built it while we waited for it.
    return await build_template(name, wanted, recipe, instance=instance, replace=True, wait_s=wait_s, unless=find)


async def _ensure_base(config: VMConfig, recipe: Recipe, instance: Instance, *, again: bool = False) -> None:
    """The recipe's image is there, made of what the recipe says, if it says that."""
    if recipe.base is not None:
        await ensure_image(config.image, made_of=recipe.base, instance=instance, again=again)


async def _prepare(config: VMConfig, recipe: Recipe, instance: Instance) -> Plan:
    """How the machine is booted. Of an image that is missing, those of the recipe's file may have been meant too."""
    try:
        return await prepare(await derive_config(config, recipe.steps, instance=instance), instance)
    except ImageNotFound as error:
        if not recipe.images:
            raise
        built = ImageStore(instance.places.images).list_names()
        raise ImageNotFound(error.name, known=(*recipe.images, *built)) from error


@asynccontextmanager
async def _out_of_space_named(staging: Staging) -> AsyncIterator[None]:
    """A QEMU that died of SIGBUS is told as what it was: its RAM file could not grow."""
    try:
        yield
    except (LaunchError, MachineEnded) as error:
        if error.exit_code == -signal.SIGBUS:
            raise _no_space(staging) from error
        raise


def _no_space(staging: Staging) -> HostError:
    return HostError(
        f"the file system of {staging.memory_path.parent} ran full while the guest used its memory",
        hint="free memory, or give the VM less",
    )
