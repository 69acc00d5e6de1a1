"""One run of a recipe: from a plan, or a layer, to a machine that is frozen in the folder of a template."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.adopt.todo import Thaw
from vmfork.errors import DeadlineExceeded, ExecError, GuestError, LaunchError, TemplateCorrupt, VMForkError
from vmfork.freeze.freeze import freeze
from vmfork.host.thread import in_thread
from vmfork.machine.booted import boot_machine
from vmfork.machine.broker import stand_alone
from vmfork.machine.facts import Descent, Make
from vmfork.machine.launch import Frozen, restore_base
from vmfork.machine.request import Standing
from vmfork.progress import Progress
from vmfork.recipe.step import Ready, Run, describe
from vmfork.recipe.surroundings import Surroundings
from vmfork.recipe.work import Work
from vmfork.store.layers import LayerStore
from vmfork.store.manifest import DoneStep
from vmfork.store.ram_file import copy_ram, empty_ram
from vmfork.template.layers import keep_layer, name_layers
from vmfork.template.scratch import opened_disk
from vmfork.wire.command import Command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmfork.config import Instance
    from vmfork.machine.base import Adopted
    from vmfork.machine.facts import MachineFacts
    from vmfork.machine.plan import Plan
    from vmfork.machine.running import Running
    from vmfork.recipe.step import Step
    from vmfork.store import OpenTemplate, Staging
    from vmfork.template.recipe import Recipe

_log = logging.getLogger("vmfork")

# A layer takes as much memory as a template, and up to 0.7 s: it is kept of what took this long (docs/decisions/0046).
LAYER_WORTH_S = 2.0
# The one before the last step, which is changed most, of what took longer than to go on from it.
LAST_WORTH_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Whether steps that were done before are gone on from, and whether the machine of a failed one is left running."""

    cache: bool = True
    keep_failed: bool = False


class Making:
    """One run of a recipe, step by step, each told to the listener and timed.

    It begins behind the last step whose layer is kept. A layer is kept of what took long enough (`LAYER_WORTH_S`).
    """

    def __init__(
        self,
        plan: Plan,
        recipe: Recipe,
        instance: Instance,
        options: BuildOptions,
        *,
        layers_mib: int | None,
        layers_disk_mib: int | None,
    ) -> None:
        self._plan = plan
        self._recipe = recipe
        self._instance = instance
        self._options = options
        self._steps = recipe.all_steps
        # What a layer is called may not depend on values that are not to be kept.
        is_layered = bool(recipe.steps) and not recipe.env
        self._names = name_layers(plan, recipe.pins) if is_layered else ()
        self._kept = LayerStore.of(instance.places, most_mib=layers_mib, most_disk_mib=layers_disk_mib)
        self.timings: dict[str, float] = {}
        self.done: list[DoneStep] = []
        self.layers: list[str] = []
        self._told = 0
        self._since = time.perf_counter()

    async def make(self, staging: Staging, scratch_fd: int | None = None) -> tuple[MachineFacts, Thaw]:
        """RAM and device state are in the staging folder, and the machine they came from is gone.

        What was on the disk that it wrote to is in `scratch_fd`, where it had one. Gives what is known of it, and what
        forks will have to do.
        """
        plan = self._plan
        with self._timed("boot_s"):
            adopted = await self._begin(staging)
        async with adopted.running as running:
            with self._timed("warm_up_s"):
                await self._do_steps(adopted, staging)
            self.report("freezing")
            with self._timed("freeze_s"):
                todo = await freeze(
                    running,
                    staging.state_path,
                    template=staging.name,
                    secrets=self._recipe.secrets,
                    hook_timeout_s=plan.hook_timeout_s,
                    scratch_fd=scratch_fd,
                )
        return running.facts, todo

    async def _begin(self, staging: Staging) -> Adopted:
        """A machine with its RAM in the staging's file, as it was behind the steps that need not be done again."""
        if not self._options.cache:
            await self._forget()
        number = len(self._steps)
        while (found := self._kept.open_last(self._names[:number])) is not None:
            number, opened = found
            with opened:
                try:
                    with opened_disk(opened.manifest, self._instance.places) as scratch_fd:
                        return await self._go_on(number, opened, staging, scratch_fd)
                # A cache: what cannot be used is made again.
                except (GuestError, LaunchError, DeadlineExceeded, TemplateCorrupt) as error:
                    _log.warning("layer %s could not be used, and is removed: %s", self._names[number], error)
            await self._kept.remove(self._names[number])
            empty_ram(staging.memory_fd)
        plan = self._plan
        self.report(f"booting image {plan.image.name!r} ({plan.hardware.accel})")
        adopted = await boot_machine(plan, instance=self._instance, memory_fd=staging.memory_fd)
        async with _closed_on_failure(adopted):
            if plan.hardware.disk:
                await self._read_ahead(adopted.running)
            await self._keep(0, adopted.running, staging)
        return adopted

    async def _read_ahead(self, running: Running) -> None:
        """A program was run: what the first of each fork would read of the disk is in memory that all of them share."""
        with suppress(ExecError):  # an image may do without it
            await running.agent.exec(Command(["true"]), timeout_s=self._plan.boot_timeout_s)

    async def _forget(self) -> None:
        """No layer of the recipe is left: the next build would go on from what this one was to do again."""
        for name in self._names:
            await self._kept.remove(name)

    async def _go_on(self, number: int, opened: OpenTemplate, staging: Staging, scratch_fd: int | None) -> Adopted:
        plan, kept = self._plan, opened.manifest
        behind = f"step {number}, {describe(self._steps[number - 1])}" if number else "the boot"
        self.report(f"going on behind {behind}")
        await in_thread(lambda _: copy_ram(opened.memory_fd, staging.memory_fd))
        frozen = Frozen(
            template="",
            image=plan.image.name,
            hardware=plan.hardware,
            memory_fd=staging.memory_fd,
            state_fd=opened.state_fd,
            thaw=Thaw(watchers=kept.watchers, greets=True),
            limits=plan.limits,
            scratch_fd=scratch_fd,
            descent=Descent(),
            reseed=plan.reseed,
            make=Make(
                traits=plan.traits,
                qemu_path=str(plan.binary.path),
                qemu_stamp=plan.binary.stamp,
                agent_protocol=kept.agent_protocol,
                agent_version=kept.agent_version,
                agent_capabilities=kept.agent_capabilities,
                policy=plan.policy,
            ),
        )
        base = await restore_base(frozen, binary=plan.binary, instance=self._instance, in_place=True)
        adopted = await base.adopt(timeout_s=plan.boot_timeout_s)
        self.done = [replace(step, reused=True) for step in kept.steps]
        self.layers = [*kept.layers]
        self._told += number
        self._since = time.perf_counter()
        return adopted

    async def _do_steps(self, adopted: Adopted, staging: Staging) -> None:
        running, first = adopted.running, len(self.done)
        begins = Surroundings(env=self._recipe.env)
        work = Work(running, self._recipe.context, begins, behind=self._steps[:first], pins=self._recipe.pins)
        for number, step in enumerate(self._steps[first:], first + 1):
            self.report(_tell(step))
            begun = time.perf_counter()
            with _named(f"step {number} of {len(self._steps)}, {describe(step)}"):
                try:
                    await work.do(step)
                except VMForkError as error:
                    raise await self._left(adopted, error) from error.__cause__
            self.done.append(DoneStep(step=describe(step), took_s=round(time.perf_counter() - begun, 4)))
            await self._keep(number, running, staging)

    async def _keep(self, number: int, running: Running, staging: Staging) -> None:
        """The machine is kept as a layer, where that saves more than it costs. The last step's is the template."""
        left = len(self._steps) - number
        worth_s = LAST_WORTH_S if left == 1 else LAYER_WORTH_S
        if not self._names or left == 0 or time.perf_counter() - self._since < worth_s:
            return
        name = self._names[number]
        done = [*self.done[:-1], replace(self.done[-1], layer=name)] if number else []
        layers = [*self.layers, name]
        if await keep_layer(
            name, running, staging.memory_fd, store=self._kept, done=done, layers=layers, instance=self._instance
        ):
            self.done, self.layers = done, layers
        self._since = time.perf_counter()

    async def _left(self, adopted: Adopted, error: VMForkError) -> VMForkError:
        """The error of a step, which says where to look into the machine, if that is to be left."""
        if not self._options.keep_failed or not adopted.running.machine.identity.is_alive():
            return error
        own, vm_id = copy(error), adopted.running.id
        try:
            client = await stand_alone(adopted.running, Standing(), adoption=adopted.adoption, timings=adopted.timings)
        except VMForkError as why:
            own.hint = f"its machine could not be left, and is gone: {why}"
            return own
        await client.aclose()
        own.hint = f"the machine is left as it is: vmfork shell {vm_id}; end it with vmfork stop {vm_id}"
        return own

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


@asynccontextmanager
async def _closed_on_failure(adopted: Adopted) -> AsyncIterator[None]:
    """The machine is gone after an error of the block."""
    try:
        yield
    except BaseException:
        await adopted.running.aclose()
        raise


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
