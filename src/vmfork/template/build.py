"""From a configuration to a frozen template: stage, boot, warm up, freeze, commit."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from typing import TYPE_CHECKING

from vmfork.adopt.secrets import Secrets
from vmfork.config import VMConfig
from vmfork.errors import HostError, LaunchError, MachineEnded, TemplateExists, VMForkError
from vmfork.freeze.freeze import freeze
from vmfork.host.thread import in_thread
from vmfork.journal import about
from vmfork.machine.booted import boot_machine
from vmfork.machine.prepare import prepare
from vmfork.progress import Progress
from vmfork.recipe.derive import derive_config
from vmfork.recipe.short import expand_steps
from vmfork.recipe.step import Ready, Run, describe
from vmfork.recipe.surroundings import Surroundings
from vmfork.recipe.work import Work
from vmfork.store import TemplateStore
from vmfork.store.manifest import DoneStep
from vmfork.template.budget import make_room
from vmfork.template.kept import KeptRecipe, find_recipe, keeping_recipe
from vmfork.template.publish import publish
from vmfork.template.recipe import Recipe
from vmfork.template.recipe_file import read_template
from vmfork.template.source import Source
from vmfork.units import MIB, format_duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmfork.adopt.todo import Thaw
    from vmfork.config import Instance
    from vmfork.machine.facts import MachineFacts
    from vmfork.machine.plan import Plan
    from vmfork.machine.running import Running
    from vmfork.recipe.step import Step
    from vmfork.store import Staging

__all__ = ["Recipe", "Secrets", "build_template", "ensure_template", "expand_steps", "read_template"]

_log = logging.getLogger("vmfork")


async def build_template(
    name: str,
    config: VMConfig,
    recipe: Recipe | None = None,
    *,
    instance: Instance,
    replace: bool = False,
    wait_s: float = 0.0,
) -> Source:
    """The template `name` is in force, and given. After any error or cancel, what was there before is still in force.

    Raises `TemplateExists` without `replace`, `StoreBusy`, and `HostError` when the host's memory or the instance's
    budget is short, before anything is booted. Raises `LaunchError`, `ExecError` when a warm-up command failed,
    `HookError`, `SecretsPresent`, and `DeadlineExceeded`.
    """
    wanted = recipe or Recipe()
    recipe = await in_thread(lambda _: wanted.pinned())
    store = TemplateStore(instance.places.templates)
    if replace or store.find_generation(name) is None:
        await make_room(name, config.memory_mib, instance=instance)
    async with await store.stage(name, memory_bytes=config.memory_mib * MIB, replace=replace, wait_s=wait_s) as staging:
        plan = await prepare(await derive_config(config, recipe.steps, instance=instance), instance)
        if (ram_mib := plan.hardware.memory_mib) > config.memory_mib:
            await make_room(name, ram_mib, instance=instance)
            staging.enlarge(ram_mib * MIB)
        build = _Build(plan, recipe, instance)
        async with _out_of_space_named(staging):
            facts, todo = await build.make(staging)
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
            )
    instance.progress(Progress(task="template", step=f"template {name!r} is ready", fraction=1.0))
    took_s = round(sum(build.timings.values()), 3)
    _log.info("template %r is ready", name, extra=about("template.built", template=name, took_s=took_s))
    return await Source.open(name, config=config, instance=instance)


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

    With `recipe`, one that was made by another does not fit. Without, it is built by `kept`, by default the recipe that
    it was last made by, and from that recipe's configuration when `config` is `None`, or with `any_kind`. Raises
    `TemplateNotFound` when the recipe needs what was not kept. When another process is building it, its result is used,
    after `wait_s` seconds at most.
    """

    async def find() -> Source | None:
        found = await Source.find(name, config, instance=instance, any_kind=any_kind)
        return None if found is None or (recipe is not None and found.recipe != recipe.name) else found

    if (found := await find()) is not None:
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
    return await build_template(name, wanted, recipe, instance=instance, replace=True, wait_s=wait_s)


class _Build:
    """One run of a recipe, step by step, each told to the listener and timed."""

    def __init__(self, plan: Plan, recipe: Recipe, instance: Instance) -> None:
        self._plan = plan
        self._recipe = recipe
        self._instance = instance
        self._steps = recipe.all_steps
        self.timings: dict[str, float] = {}
        self.done: list[DoneStep] = []
        self._told = 0

    async def make(self, staging: Staging) -> tuple[MachineFacts, Thaw]:
        """RAM and device state are in the staging folder, and the machine they came from is gone.

        Gives what is known of it, and what forks will have to do.
        """
        plan = self._plan
        self.report(f"booting image {plan.image.name!r} ({plan.hardware.accel})")
        with self._timed("boot_s"):
            adopted = await boot_machine(plan, instance=self._instance, memory_fd=staging.memory_fd)
        async with adopted.running as running:
            with self._timed("warm_up_s"):
                await self._do_steps(running)
            self.report("freezing")
            with self._timed("freeze_s"):
                todo = await freeze(
                    running,
                    staging.state_path,
                    template=staging.name,
                    secrets=self._recipe.secrets,
                    hook_timeout_s=plan.hook_timeout_s,
                )
        return running.facts, todo

    async def _do_steps(self, running: Running) -> None:
        work = Work(running, self._recipe.context, Surroundings(env=self._recipe.env))
        for number, step in enumerate(self._steps, 1):
            self.report(_tell(step))
            begun = time.perf_counter()
            with _named(f"step {number} of {len(self._steps)}, {describe(step)}"):
                await work.do(step)
            self.done.append(DoneStep(step=describe(step), took_s=round(time.perf_counter() - begun, 4)))

    def report(self, step: str) -> None:
        """The listener knows what is done now."""
        steps = 3 + len(self._steps)
        self._instance.progress(Progress(task="template", step=step, fraction=self._told / steps))
        self._told += 1

    @contextmanager
    def _timed(self, key: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[key] = time.perf_counter() - start


def _tell(step: Step) -> str:
    if isinstance(step, Run):
        return f"running {step.line!r}"
    return f"waiting for {step.value!r}" if isinstance(step, Ready) else describe(step)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """An error of the block begins with what failed."""
    try:
        yield
    except VMForkError as error:
        own = copy(error)  # the reason that a line was lost is everybody's
        own.message = f"{what}: {error.message}"
        raise own from error.__cause__


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
