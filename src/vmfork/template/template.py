"""A frozen machine by name: build it, open it, fork it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from vmfork.adopt.identity import check_env
from vmfork.adopt.secrets import Secrets
from vmfork.adopt.thaw import Thaw
from vmfork.config import VMConfig, check_name, find_places
from vmfork.errors import (
    ConfigError,
    ImageNotFound,
    TemplateCorrupt,
    TemplateExists,
    TemplateNotFound,
    TemplateStale,
)
from vmfork.host import kvm
from vmfork.hypervisor.base import Hardware
from vmfork.hypervisor.qemu import find_qemu_like
from vmfork.image import open_image
from vmfork.machine.accelerator import warn_if_forbidden
from vmfork.machine.launch import Frozen, restore_base
from vmfork.machine.trace import failure_told
from vmfork.progress import ignore_progress
from vmfork.store import TemplateStore
from vmfork.template.traits import emulator_traits, image_traits, wanted_traits
from vmfork.wire import SUPPORTED_PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.config import Places
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.machine.base import BaseVM
    from vmfork.machine.vm import VM
    from vmfork.progress import ProgressListener
    from vmfork.store import Manifest
    from vmfork.template.audit import AuditReport
    from vmfork.template.probes import Probe

DEFAULT = "default"
# Forks made at once by `fork_many`: more only wait for the same cores.
_CONCURRENCY = 8


class Template:
    """One generation of a template, found whole and fit for this host. A value: it holds nothing open.

    When it is replaced or removed, `fork` raises `TemplateNotFound`; open the name again for its successor.
    """

    def __init__(self, manifest: Manifest, binary: QemuBinary, places: Places, config: VMConfig) -> None:
        self.manifest = manifest
        self._binary = binary
        self._places = places
        self._config = config

    def __repr__(self) -> str:
        m = self.manifest
        return f"<Template {m.name!r} generation {m.generation}, {m.cpus} CPU, {m.memory_mib} MiB>"

    @property
    def name(self) -> str:
        """What it is opened by."""
        return self.manifest.name

    @property
    def generation(self) -> str:
        """Names this very freezing; another one of the same name has another."""
        return self.manifest.generation

    @property
    def hardware(self) -> Hardware:
        """What its machines are made of."""
        m = self.manifest
        return Hardware(
            machine=m.traits["machine"],
            accel=m.traits["accel"],
            cpu_model=m.traits["cpu_model"],
            cpus=m.cpus,
            memory_mib=m.memory_mib,
            vmgenid=m.vmgenid,
            max_cpus=m.max_cpus,
            max_memory_mib=m.max_memory_mib,
        )

    @classmethod
    async def build(
        cls,
        name: str,
        config: VMConfig | None = None,
        *,
        warm_up: Sequence[str] = (),
        ready: str = "",
        env: Mapping[str, str] | None = None,
        secret_paths: Sequence[str] = (),
        secret_env: Sequence[str] = (),
        allow_secrets: bool = False,
        replace: bool = False,
        step_timeout_s: float = 600.0,
        ready_timeout_s: float = 120.0,
        wait_s: float = 0.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """A machine was booted, each `warm_up` shell command and `ready` succeeded, and it is frozen as `name`.

        The image `default` is built where it is missing; any other must exist (`ImageNotFound`). `TemplateExists`
        unless `replace`, which keeps the old one in force until the new one is whole. `StoreBusy` when another process
        builds the same name for longer than `wait_s`. `HostError`, `LaunchError`, `ExecError`, `HookError`,
        `DeadlineExceeded`: nothing is left, and a former template still stands.

        `env` is for `warm_up` and `ready` alone, and not kept. `SecretsPresent`, unless `allow_secrets`, when at the
        time of freezing one of `secret_paths` exists, or a process was started with a variable of `secret_env`.
        """
        from vmfork.template.build import Recipe, build_template  # noqa: PLC0415 - forking should not pay for it

        check_name(name)
        if isinstance(warm_up, str):
            raise ConfigError("warm_up", warm_up, "warm-up commands are a list of strings")
        for field, value in (("secret_paths", secret_paths), ("secret_env", secret_env)):
            if isinstance(value, str):
                raise ConfigError(field, value, "must be a list of strings")
        recipe = Recipe(
            warm_up=tuple(warm_up),
            ready=ready,
            env=check_env(env or {}),
            secrets=Secrets(paths=tuple(secret_paths), env=tuple(secret_env), allowed=allow_secrets),
            step_timeout_s=step_timeout_s,
            ready_timeout_s=ready_timeout_s,
        )
        config = config or VMConfig()
        places = places or find_places()
        await build_template(name, config, recipe, places=places, replace=replace, wait_s=wait_s, progress=progress)
        return await cls.open(name, config=config, places=places)

    @classmethod
    async def open(cls, name: str, *, config: VMConfig | None = None, places: Places | None = None) -> Self:
        """The template in force under `name`, its files whole, fit for this host's emulator, accelerator and image.

        `config` gives the emulator's path and the time limits of a fork, nothing else: what was booted is in the
        template.
        `TemplateNotFound`, `TemplateStale` (field, have, want), `TemplateCorrupt`.
        """
        places = places or find_places()
        config = config or VMConfig()
        with TemplateStore(places.templates).open(name) as opened:
            manifest = opened.manifest
        template = cls(manifest, await _find_emulator(manifest, config), places, config)
        template._check_fit()
        return template

    @classmethod
    async def ensure(
        cls,
        name: str = DEFAULT,
        config: VMConfig | None = None,
        *,
        wait_s: float = 600.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """The template `name`, built first where it is missing, or fits this host or `config` no more.

        Its size is kept as it is. Another process that is building it is waited for, `wait_s` seconds at most, and its
        result used.
        """
        places = places or find_places()

        async def find() -> Self:
            template = await cls.open(name, config=config, places=places)
            if config is not None:
                _check_config(template.manifest, config)
            return template

        try:
            return await find()
        except (TemplateNotFound, TemplateStale, TemplateCorrupt):
            pass
        try:
            return await cls.build(name, config, wait_s=wait_s, progress=progress, places=places)
        except TemplateExists:
            pass  # it was built while we waited, or it is there but does not fit
        try:
            return await find()
        except (TemplateStale, TemplateCorrupt):
            return await cls.build(name, config, replace=True, wait_s=wait_s, progress=progress, places=places)

    @classmethod
    async def list(cls, *, places: Places | None = None) -> Sequence[str]:
        """The names of all templates, sorted."""
        places = places or find_places()
        return await asyncio.to_thread(TemplateStore(places.templates).list_names)

    async def fork(
        self,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        timeout_s: float | None = None,
    ) -> VM:
        """A running VM that shares this template's memory copy-on-write, has an identity of its own, and answers.

        `env` is the environment of every program in it; `files` (absolute path: content) are written into it before its
        hooks run, mode 0600, folders made as needed. Neither enters a template. `TemplateNotFound` when this generation
        is gone, `TemplateCorrupt`, `TemplateStale`, `LaunchError`, `AdoptError` (the guest did not confirm an item
        within `timeout_s`, or a hook failed); nothing is left after any of them.

        With `cpus` or `memory_mib` the fork was grown to that size (`vm.hardware` tells what memory was rounded up to):
        `ConfigError` when the template has no room for it, or is larger; `FitError`, `HostError`.
        """
        limit = self._config.fork_timeout_s if timeout_s is None else timeout_s
        if cpus is None and memory_mib is None:
            return await self._fork_as_it_is(env=env, files=files, timeout_s=limit)
        from vmfork.machine.fit import fit, plan_growth  # noqa: PLC0415 - few forks are grown

        plan_growth(self.hardware, cpus=cpus, memory_mib=memory_mib, whose=f"template {self.name!r}")
        vm = await self._fork_as_it_is(env=env, files=files, timeout_s=limit)
        async with AsyncExitStack() as on_failure:
            on_failure.push_async_callback(vm.aclose)
            await fit(vm, cpus=cpus, memory_mib=memory_mib)
            on_failure.pop_all()
        return vm

    async def _fork_as_it_is(
        self, *, env: Mapping[str, str] | None, files: Mapping[str, bytes | str] | None, timeout_s: float
    ) -> VM:
        warn_if_forbidden(self.hardware.accel, self._config)
        with failure_told("vmfork.fork", {"vmfork.template": self.name}):
            base = await self.fork_base()
            limit = self._config.hook_timeout_s
            return await base.adopt(env=env, files=files, timeout_s=timeout_s, hook_timeout_s=limit)

    async def fork_many(
        self,
        count: int,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_s: float | None = None,
    ) -> Sequence[VM]:
        """`count` forks, made several at a time. When one fails, all are closed and its error is raised."""
        if not isinstance(count, int) or count < 1:
            raise ConfigError("count", count, f"{count!r} is not a number of forks", hint="give 1 or more")
        slots = asyncio.Semaphore(_CONCURRENCY)
        async with AsyncExitStack() as on_failure:
            vms: list[VM] = []

            async def fork_one() -> None:
                async with slots:
                    vm = await self.fork(env=env, files=files, timeout_s=timeout_s)
                    on_failure.push_async_callback(vm.aclose)
                    vms.append(vm)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(count):
                        group.create_task(fork_one())
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None
            on_failure.pop_all()
        return vms

    async def fork_base(self) -> BaseVM:
        """A machine restored from this template that is nobody's yet: adopt it before use."""
        # The distribution may have replaced the emulator since this was opened.
        self._binary = await _find_emulator(self.manifest, self._config)
        self.manifest.check_traits(emulator_traits(self.hardware, self._binary))
        with TemplateStore(self._places.templates).open(self.name, generation=self.generation) as opened:
            frozen = Frozen(
                template=self.name,
                image=self.manifest.image,
                hardware=self.hardware,
                memory_fd=opened.memory_fd,
                state_fd=opened.state_fd,
                thaw=Thaw(
                    hooks=self.manifest.hooks,
                    watchers=self.manifest.watchers,
                ),
                reseed=self.manifest.traits["reseed"] in ("both", "agent"),
            )
            return await restore_base(frozen, binary=self._binary, places=self._places)

    async def audit(
        self, count: int = 4, *, probes: Sequence[Probe] = (), progress: ProgressListener = ignore_progress
    ) -> AuditReport:
        """`count` forks (2 or more) were compared with each other, and closed.

        What is alike and must not be, what differs and must not, is in the report. `probes` are added to the built-in
        ones. A finding is no error: see `AuditReport.safe`. Errors are those of `fork`.
        """
        from vmfork.template.audit import audit_template  # noqa: PLC0415 - forking should not pay for it

        return await audit_template(self, count, probes, progress=progress)

    async def verify(self) -> None:
        """Every byte of the template is what was frozen. `TemplateCorrupt` names the file that is not."""
        await asyncio.to_thread(TemplateStore(self._places.templates).verify, self.name)

    async def remove(self) -> None:
        """No template of this name exists; forks made from it run on. `TemplateNotFound`, `StoreBusy`."""
        await TemplateStore(self._places.templates).remove(self.name)

    def _check_fit(self) -> None:
        m = self.manifest
        if m.agent_protocol not in SUPPORTED_PROTOCOLS:
            raise TemplateStale(m.name, "agent.protocol", m.agent_protocol, max(SUPPORTED_PROTOCOLS))
        m.check_traits(emulator_traits(self.hardware, self._binary))
        if self.hardware.accel == "kvm" and kvm.find_refusal() is not None:
            raise TemplateStale(m.name, "accel", "kvm", "tcg")
        try:
            image = open_image(m.image, images_dir=self._places.images)
        except ImageNotFound:
            return  # a template needs no image any more; there is none to differ from
        m.check_traits(image_traits(image))


async def _find_emulator(manifest: Manifest, config: VMConfig) -> QemuBinary:
    version = manifest.traits.get("qemu.version", "")
    return await find_qemu_like(manifest.qemu_path, version, manifest.qemu_stamp, configured=config.qemu)


def _check_config(manifest: Manifest, config: VMConfig) -> None:
    """Raises `TemplateStale` when a build from `config` would give other machines than this template."""
    if config.image != manifest.image:
        raise TemplateStale(manifest.name, "image", manifest.image, config.image)
    manifest.check_traits(wanted_traits(config, machine=manifest.traits["machine"], accel=manifest.traits["accel"]))
