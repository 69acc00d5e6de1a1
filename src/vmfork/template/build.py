"""From a configuration to a frozen template: stage, boot, warm up, freeze, commit."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmfork.adopt.secrets import Secrets
from vmfork.errors import ConfigError, DeadlineExceeded, HostError, LaunchError, MachineEnded
from vmfork.host import facts
from vmfork.machine.launch import boot_base
from vmfork.machine.plan import plan_boot
from vmfork.progress import Progress, ignore_progress
from vmfork.store import Manifest, TemplateStore
from vmfork.store.ram_file import digest_ram
from vmfork.template.traits import all_traits
from vmfork.units import MIB, format_duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from vmfork.adopt.thaw import Thaw
    from vmfork.config import Places, VMConfig
    from vmfork.machine.launch import BootPlan
    from vmfork.machine.vm import VM
    from vmfork.progress import ProgressListener
    from vmfork.store import Staging
    from vmfork.wire import Hello

# Between two tries of the ready command; nothing tells when an arbitrary condition becomes true.
_READY_PAUSE_S = 0.1
READY_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is done to a booted machine before it is frozen.

    `warm_up` are shell commands, run in order, each at most `step_timeout_s` seconds; a failing one fails the build.
    `ready` is a shell command that is tried until it succeeds, at most `ready_timeout_s` seconds. Both run with `env`.
    A machine that holds one of `secrets` is not frozen.
    """

    warm_up: tuple[str, ...] = ()
    ready: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Secrets = field(default_factory=Secrets)
    step_timeout_s: float = 600.0
    ready_timeout_s: float = READY_LIMIT_S

    def __post_init__(self) -> None:
        for command in (*self.warm_up, self.ready):
            if not isinstance(command, str) or "\0" in command:
                raise ConfigError("warm_up", command, "a warm-up command is a line of shell")


async def build_template(
    name: str,
    config: VMConfig,
    recipe: Recipe,
    *,
    places: Places,
    replace: bool = False,
    wait_s: float = 0.0,
    progress: ProgressListener = ignore_progress,
) -> Manifest:
    """The template `name` is in force, or, on any error or cancel, what was there before still is.

    `TemplateExists` unless `replace`; `StoreBusy`; `HostError` for lack of memory, before anything is booted;
    `LaunchError`, `ExecError` (a warm-up command failed), `HookError`, `SecretsPresent`, `DeadlineExceeded`.
    """
    store = TemplateStore(places.templates)
    async with await store.stage(name, memory_bytes=config.memory_mib * MIB, replace=replace, wait_s=wait_s) as staging:
        plan = await plan_boot(config, places=places, progress=progress)
        build = _Build(plan, recipe, places, progress)
        async with _out_of_space_named(staging):
            greeting, todo = await build.make(staging)
        manifest = await build.describe(staging, greeting, todo)
        await staging.commit(manifest)
    progress(Progress(task="template", step=f"template {name!r} is ready", fraction=1.0))
    return manifest


class _Build:
    """One run of a recipe, step by step, each told to the listener and timed."""

    def __init__(self, plan: BootPlan, recipe: Recipe, places: Places, progress: ProgressListener) -> None:
        self._plan = plan
        self._recipe = recipe
        self._places = places
        self._progress = progress
        self._timings: dict[str, float] = {}
        self._steps_done = 0

    async def make(self, staging: Staging) -> tuple[Hello, Thaw]:
        """RAM and device state are in the staging folder, and the machine they came from is gone.

        What its agent said of itself, and what forks will have to do.
        """
        plan = self._plan
        self._tell(f"booting image {plan.image.name!r} ({plan.hardware.accel})")
        with self._timed("boot_s"):
            base = await boot_base(plan, places=self._places, memory_fd=staging.memory_fd)
            vm = await base.adopt(timeout_s=plan.config.boot_timeout_s)
        assert base.greeting is not None  # a booted machine has said hello
        async with vm:
            with self._timed("warm_up_s"):
                await self._warm_up(vm)
            self._tell("freezing")
            with self._timed("freeze_s"):
                todo = await vm.save_state(
                    staging.state_path,
                    template=staging.name,
                    secrets=self._recipe.secrets,
                    hook_timeout_s=plan.config.hook_timeout_s,
                )
        return base.greeting, todo

    async def describe(self, staging: Staging, greeting: Hello, todo: Thaw) -> Manifest:
        """The manifest of what lies in the staging folder."""
        self._tell(f"recording (booted in {format_duration(self._timings['boot_s'])})")
        staging.state_path.chmod(0o600)
        memory = await asyncio.to_thread(digest_ram, staging.memory_path)
        state = staging.state_path.read_bytes()
        plan, hardware = self._plan, self._plan.hardware
        return Manifest(
            name=staging.name,
            generation=staging.generation,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            image=plan.image.name,
            cpus=hardware.cpus,
            memory_mib=hardware.memory_mib,
            max_cpus=hardware.max_cpus,
            max_memory_mib=hardware.max_memory_mib,
            traits=all_traits(hardware, plan.binary, plan.image, plan.config),
            hooks=todo.hooks,
            watchers=todo.watchers,
            secret_paths=self._recipe.secrets.paths,
            secret_env=self._recipe.secrets.env,
            secrets_found=todo.secrets_found,
            agent_protocol=greeting.protocol,
            agent_version=greeting.agent_version,
            vmgenid=hardware.vmgenid,
            memory_bytes=staging.memory_bytes,
            memory_allocated_bytes=memory.allocated_bytes,
            memory_sha256=memory.sha256,
            state_bytes=len(state),
            state_sha256=hashlib.sha256(state).hexdigest(),
            host_boot_id=facts.boot_id(),
            host_kernel=facts.kernel_release(),
            qemu_path=str(plan.binary.path),
            qemu_stamp=plan.binary.stamp,
            warm_up=self._recipe.warm_up,
            ready=self._recipe.ready,
            timings={key: round(value, 4) for key, value in self._timings.items()},
        )

    async def _warm_up(self, vm: VM) -> None:
        recipe = self._recipe
        for command in recipe.warm_up:
            self._tell(f"running {command!r}")
            await vm.shell(command, env=recipe.env, timeout_s=recipe.step_timeout_s, check=True)
        if recipe.ready:
            self._tell(f"waiting for {recipe.ready!r}")
            await _wait_ready(vm, recipe)

    def _tell(self, step: str) -> None:
        steps = 3 + len(self._recipe.warm_up) + bool(self._recipe.ready)
        self._progress(Progress(task="template", step=step, fraction=self._steps_done / steps))
        self._steps_done += 1

    @contextmanager
    def _timed(self, key: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._timings[key] = time.perf_counter() - start


async def _wait_ready(vm: VM, recipe: Recipe) -> None:
    end = time.monotonic() + recipe.ready_timeout_s
    last = b""
    while (left := end - time.monotonic()) > 0:
        try:
            result = await vm.shell(recipe.ready, env=recipe.env, timeout_s=left)
        except DeadlineExceeded as error:
            last = error.stderr
            break
        if result.ok:
            return
        last = result.stderr_bytes
        await asyncio.sleep(_READY_PAUSE_S)
    said = last.decode(errors="replace").rstrip()
    detail = f"its last standard error:\n{said}" if said else ""
    task = f"waiting for {recipe.ready!r} to succeed"
    raise DeadlineExceeded(task, recipe.ready_timeout_s, stderr=last, detail=detail)


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
