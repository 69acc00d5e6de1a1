"""A frozen machine by name: build it, open it, fork it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

from vmfork.border import guarded
from vmfork.config import Instance, VMConfig, check_name, find_places
from vmfork.errors import ConfigError
from vmfork.machine.again import made_again
from vmfork.machine.disk import read_disk
from vmfork.machine.request import ForkRequest, Standing
from vmfork.machine.several import make_several
from vmfork.machine.trace import failure_traced
from vmfork.owner import gives_owner
from vmfork.progress import ignore_progress
from vmfork.store import TemplateStore
from vmfork.template.removal import locate_persisted
from vmfork.template.source import Source
from vmfork.wire.given import check_local

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from vmfork.api.vm import VM
    from vmfork.config import CardChoice, Places
    from vmfork.errors import VMForkError
    from vmfork.hypervisor.base import Hardware
    from vmfork.network.policy import NetworkPolicy
    from vmfork.progress import ProgressListener
    from vmfork.store import Manifest
    from vmfork.template.audit import AuditReport
    from vmfork.template.probes import Probe
    from vmfork.template.recipe import Recipe
    from vmfork.travel.saved import Saved
    from vmfork.units import Size
    from vmfork.wire.given import GivenFile, GuestPath, HostPath

DEFAULT = "default"


@guarded
class Template:
    """One generation of a template, found whole and fit for this host. A value: it holds nothing open.

    When it is replaced or removed, `fork` raises `TemplateNotFound`; open the name again for its successor.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def __repr__(self) -> str:
        m = self.manifest
        return f"<Template {m.name!r} generation {m.generation}, {m.cpus} CPU, {m.memory_mib} MiB>"

    @property
    def name(self) -> str:
        """What it is opened by."""
        return self.manifest.name

    @property
    def generation(self) -> str:
        """Names this very freezing: a template that was built again has another."""
        return self.manifest.generation

    @property
    def manifest(self) -> Manifest:
        """What was booted and frozen, with digests and times."""
        return self._source.manifest

    @property
    def hardware(self) -> Hardware:
        """What its machines are made of."""
        return self._source.hardware

    @classmethod
    async def build(
        cls,
        name: str,
        config: VMConfig | None = None,
        *,
        recipe: Recipe | HostPath | None = None,
        from_: str = "",
        steps: Sequence[Mapping[str, Any]] = (),
        packages: Sequence[str] = (),
        files: Mapping[str, HostPath] | None = None,
        pip: Sequence[str] = (),
        hooks: Mapping[str, Any] | None = None,
        start: str = "",
        ready: str | Mapping[str, Any] = "",
        memory: Size | None = None,
        max_memory: Size | None = None,
        disk: Size | None = None,
        folder: HostPath = ".",
        warm_up: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        secret_paths: Sequence[GuestPath] = (),
        secret_env: Sequence[str] = (),
        allow_secrets: bool = False,
        network: NetworkPolicy = "none",
        replace: bool = False,
        cache: bool = True,
        keep_failed: bool = False,
        step_timeout_s: float = 600.0,
        ready_timeout_s: float = 120.0,
        wait_s: float = 0.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """A machine was booted, its steps, `warm_up` commands and `ready` succeeded, and it is frozen as `name`.

        The words are those of a recipe file (docs/guides/recipes.md). A step is a table of a word and what it is about,
        such as `{"copy": ["app/", "/srv/app"]}`: `packages`, `pip`, `copy`, `hooks`, `run`, `env`, `workdir`, `user`,
        `start` or `ready`. Before them come the short forms `packages` (of Debian), `files` (path in the guest: file or
        folder here) and `pip` (requirements, or files of them); behind them `hooks`, `start`, a `ready` that is a table
        (`{"port": 8000}`), `warm_up`, and a `ready` that is a line of shell. What is copied lies in `folder`. `memory`,
        `max_memory` and `disk` are sizes (`"512M"`, or a number of MiB), and come before those of `config`.

        `recipe` says all of that: a `Recipe`, or a file that has the section [template.NAME]. What it says of the
        machine comes before `config`. Where no `config` is given, it is what [vm] of that file says; its [image] and
        [image.NAME] say what the image is made of. The environment is not asked.

        The image `default` is built where it is missing; any other must exist (`ImageNotFound`). With `from_` it is a
        container image, which is imported where it is missing or its source has changed: see `Image.import_oci`. A
        registry is asked where nothing of that reference is here, or `cache` is false. With `replace` a
        former template stays in force until the new one is whole. `env` is for `warm_up` and `ready` alone, and is not
        kept. So is `network`, what they may reach: the template and its forks reach nothing by it.

        Steps that an earlier build has done are not done again where that machine was kept, unless `cache` is false:
        then what was kept of them is made anew.
        With `keep_failed` the machine of a step that failed runs on by itself, and the error's hint names it.

        Raises `TemplateExists` without `replace`, and `StoreBusy` when another process builds the same name for longer
        than `wait_s`. Raises `SecretsPresent`, unless `allow_secrets`, when at the time of freezing one of
        `secret_paths` exists, or a process was started with a variable of `secret_env`. Raises `HostError`,
        `LaunchError`, `ExecError`, `HookError` and `DeadlineExceeded`. After any of them nothing is left, and a former
        template is still in force.
        """
        check_name(name)
        _, building = _load_making()
        short = building.Recipe(
            from_=from_ or None,
            memory=memory,
            max_memory=max_memory,
            disk=disk,
            steps=building.expand_steps(steps, packages=packages, files=files or {}, pip=pip, folder=folder),
            folder=folder,
            hooks=hooks,
            start=start or None,
            ready=ready,
            warm_up=warm_up,
            env=env,
            secret_paths=secret_paths,
            secret_env=secret_env,
            allow_secrets=allow_secrets,
            network=network,
            step_timeout_s=step_timeout_s,
            ready_timeout_s=ready_timeout_s,
        )
        if recipe is not None and short != building.Recipe():
            hint = "put the steps into the recipe, or leave it away"
            raise ConfigError("recipe", recipe, "it says all of how the template is made", hint=hint)
        if from_ and config is not None and config.image != VMConfig().image:
            raise ConfigError("from_", from_, f"the configuration names an image too: {config.image!r}")
        made_by = short
        if recipe is not None:
            made_by, config = await asyncio.to_thread(_read_recipe, recipe, name, config)
        instance = Instance(places or find_places(), progress)
        build, wanted = building.build_template, made_by.apply_to(config or VMConfig())
        options = building.BuildOptions(cache=cache, keep_failed=keep_failed)
        return cls(
            await build(name, wanted, made_by, instance=instance, replace=replace, wait_s=wait_s, options=options)
        )

    @classmethod
    async def open(cls, name: str, *, config: VMConfig | None = None, places: Places | None = None) -> Self:
        """The template in force under `name`, its files whole, fit for this host's emulator, accelerator and image.

        `config` gives the emulator's path, the time limits of a fork and what of the host it may have, nothing else:
        what was booted is in the template. One that is on disk alone (`persist`) is brought back to memory. Raises
        `TemplateNotFound`, `TemplateStale` (field, have, want), and `TemplateCorrupt`.
        """
        instance = Instance(places or find_places())
        wanted = config or VMConfig()
        if locate_persisted(name, instance.places).exists():
            return cls(await _load_moving().open_template(name, config=wanted, instance=instance))
        return cls(await Source.open(name, config=wanted, instance=instance))

    @classmethod
    async def ensure(
        cls,
        name: str = DEFAULT,
        config: VMConfig | None = None,
        *,
        recipe: Recipe | HostPath | None = None,
        pull: str | None = None,
        wait_s: float = 600.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """The template `name`. It was built first if it was missing, or did not fit this host or `config` any more.

        Its size is kept as it is. With `recipe`, as for `build`, it is also built when it was made by another, when a
        file changed that the recipe reads, or when the recipe says another size than it was made of; what the recipe
        says of the machine comes before `config`, which [vm] of its file says where none is given. When another process
        is building it, its result is used, after `wait_s` seconds at most.

        With `pull`, such as `registry.example/team/py:1`, it is looked for there before it is built, as by `pull`. Why
        it was not pulled is in the log.
        """
        instance = Instance(places or find_places(), progress)
        if recipe is not None:
            read, config = await asyncio.to_thread(_read_recipe, recipe, name, config)
            made_by = await asyncio.to_thread(read.pinned)
            _, building = _load_making()
            says_machine = config is not None or made_by.vm or made_by.base is not None
            wanted = made_by.apply_to(config or VMConfig()) if says_machine else None
            if pull:
                await _load_moving().pull_if_missing(
                    name, pull, config=wanted, recipe=made_by.name, instance=instance, wait_s=wait_s
                )
            build = building.ensure_template
            return cls(await build(name, wanted, instance=instance, wait_s=wait_s, recipe=made_by))
        if (found := await Source.find(name, config, instance=instance)) is not None:
            return cls(found)
        if pull:
            await _load_moving().pull_if_missing(name, pull, config=config, instance=instance, wait_s=wait_s)
        _, building = _load_making()
        return cls(await building.ensure_template(name, config, instance=instance, wait_s=wait_s))

    @classmethod
    async def list(cls, *, places: Places | None = None) -> Sequence[str]:
        """The names of all templates, sorted."""
        places = places or find_places()
        return await asyncio.to_thread(TemplateStore(places.templates).list_names)

    @gives_owner
    async def fork(
        self,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        card: CardChoice = "none",
        disk: Size | None = None,
        allow_guest_fork: int = 0,
        timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> VM:
        """A running VM that shares this template's memory copy-on-write, has an identity of its own, and answers.

        `env` is the environment of every program in it. `files` (absolute path: content) are written into it before its
        hooks run, mode 0600, folders made as needed; a `Path` as content is a file of the host, whose mode it keeps.
        Neither enters a template. With `cpus` or `memory_mib` the fork was grown to that size; `vm.hardware` tells what
        memory was rounded up to. Where the host has no room for it, room is waited for, `wait_s` seconds at most (by
        default the configuration's). It ends by itself after `ttl_s` seconds, and after `idle_ttl_s` seconds without a
        request to its guest, a program that runs being one; 0 is never. Whoever uses it then gets `MachineEnded` with
        the `reason`. The event loop sees to that: while that stands still, so does the time. `network` is what it may
        reach: nothing (`none`), what an `Allow` names, or `all` of the internet, from before its hooks on
        (`set_network` changes it). Our process holds that, and it ends with it. `card` is what its network card leads
        to, where the template has one (`VMConfig(nic=True)`): nothing (`none`), a network where nothing is let through
        (`restricted`), what a process of this host reaches, which is at 10.0.2.2 (`open`), or all but this host's
        loopback, by a process of its own (`passt`). `disk` (`"2G"`, or a number of MiB) is the size of a disk with
        nothing on it, at `/scratch` and gone with the VM, where the template has none (docs/guides/scratch-disks.md).
        With `allow_guest_fork` its programs may fork it
        (`vmfork_guest.fork()`): so many machines may live beside it, and `children` has them.

        Raises `NoRoom` then, with the arithmetic. Raises `TemplateNotFound` when this generation is gone,
        `TemplateCorrupt`, `TemplateStale`, `LaunchError`, and `AdoptError` when the guest did not confirm an item
        within `timeout_s`, or a hook failed. Raises `ConfigError` when the template has no room for the size, or is
        larger, or has no card, or another disk, or its forks can be given none. Raises `FitError` and `HostError` when
        the fork could not be grown, or passt does not come up, or there is no room for a disk. After any of them
        nothing is left.
        """
        request = ForkRequest(
            env=env or {},
            files=files or {},
            cpus=cpus,
            memory_mib=memory_mib,
            ttl_s=ttl_s,
            idle_ttl_s=idle_ttl_s,
            network=network,
            card=card,
            disk_mib=read_disk(disk),
            allow_guest_fork=allow_guest_fork,
        )
        return await self._fork(request, timeout_s=timeout_s, wait_s=wait_s)

    async def _fork(
        self,
        request: ForkRequest,
        *,
        timeout_s: float | None,
        wait_s: float | None,
        standing: Standing | None = None,
    ) -> VM:
        source = self._source
        source.check_request(request)
        with failure_traced("vmfork.fork", {"vmfork.template": self.name}):
            limit_s = source.fork_timeout_s if timeout_s is None else timeout_s
            hook_limit_s = source.hook_timeout_s

            async def make() -> VM:
                base = await source.fork_base(wait_s=wait_s, card=request.card, disk_mib=request.disk_mib)
                # Loaded the first time, while QEMU starts (docs/decisions/0008).
                from vmfork.api.vm import VM, allow_forks  # noqa: PLC0415

                made = await base.adopt(request, timeout_s=limit_s, hook_timeout_s=hook_limit_s, standing=standing)
                return await allow_forks(VM(*made), request, instance=source.instance, timeout_s=limit_s)

            return await made_again(make, accel=source.hardware.accel)

    @gives_owner
    async def start(
        self,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        network: NetworkPolicy = "none",
        card: CardChoice = "none",
        disk: Size | None = None,
        allow_guest_fork: int = 0,
        timeout_s: float | None = None,
        wait_s: float | None = None,
    ) -> VM:
        """A fork that outlives its maker. What is given is one of its clients, as by `VM.connect`.

        It is found by its id or its `name`, which no other living VM has, and listed by its `labels`. It ends when it
        is stopped, after `ttl_s` seconds, and after `idle_ttl_s` seconds without a client; 0 is never. All else is as
        for `fork`. What it may reach (`network`), and whether its programs may fork it (`allow_guest_fork`), holds as
        long as this client is there; another can say so when it has ended. What they fork is this client's, and ends
        with it.

        Raises what `fork` raises, `VMExists` when a living VM has the name, and `ConfigError` for an invalid name,
        label or time. After any of them nothing is left.
        """
        request = ForkRequest(
            env=env or {},
            files=files or {},
            cpus=cpus,
            memory_mib=memory_mib,
            network=network,
            card=card,
            disk_mib=read_disk(disk),
            allow_guest_fork=allow_guest_fork,
        )
        standing = Standing(name=name, labels=labels or {}, ttl_s=ttl_s, idle_ttl_s=idle_ttl_s)
        self._source.check_standing(standing)
        return await self._fork(request, timeout_s=timeout_s, wait_s=wait_s, standing=standing)

    @overload
    async def fork_many(
        self,
        count: int,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        card: CardChoice = "none",
        disk: Size | None = None,
        timeout_s: float | None = None,
        wait_s: float | None = None,
        partial: Literal[False] = False,
    ) -> Sequence[VM]: ...

    @overload
    async def fork_many(
        self,
        count: int,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        card: CardChoice = "none",
        disk: Size | None = None,
        timeout_s: float | None = None,
        wait_s: float | None = None,
        partial: bool,
    ) -> Sequence[VM | VMForkError]: ...

    async def fork_many(
        self,
        count: int,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, GivenFile] | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        ttl_s: float = 0.0,
        idle_ttl_s: float = 0.0,
        network: NetworkPolicy = "none",
        allow_guest_fork: int = 0,
        card: CardChoice = "none",
        disk: Size | None = None,
        timeout_s: float | None = None,
        wait_s: float | None = None,
        partial: bool = False,
    ) -> Sequence[VM | VMForkError]:
        """`count` forks, each as `fork` gives it, made several at a time.

        When one fails, all are closed and its error is raised, with those of others in `siblings`. With `partial` those
        that could be had are given, and behind them the errors.
        """
        request = ForkRequest(
            env=env or {},
            files=files or {},
            cpus=cpus,
            memory_mib=memory_mib,
            ttl_s=ttl_s,
            idle_ttl_s=idle_ttl_s,
            network=network,
            allow_guest_fork=allow_guest_fork,
            card=card,
            disk_mib=read_disk(disk),
        )
        failures: list[VMForkError] | None = [] if partial else None

        async def fork_one() -> VM:
            return await self._fork(request, timeout_s=timeout_s, wait_s=wait_s)

        vms = await make_several(count, fork_one, close=_close, failures=failures)
        return [*vms, *(failures or ())]

    async def audit(
        self, count: int = 4, *, probes: Sequence[Probe] = (), progress: ProgressListener = ignore_progress
    ) -> AuditReport:
        """`count` forks (2 or more) were compared with each other, and closed.

        The report says what is alike and must differ, and what differs and must be alike. `probes` are added to the
        built-in ones. A finding is not an error: see `AuditReport.safe`. Raises what `fork` raises.
        """
        audit, _ = _load_making()
        audit.check_probes(probes)
        report: AuditReport = await audit.audit_template(
            self.manifest, self.fork_many, count, probes, progress=progress
        )
        return report

    async def verify(self) -> None:
        """Every byte of the template is what was frozen. Raises `TemplateCorrupt`, naming the file that is not."""
        await asyncio.to_thread(self._source.verify)

    async def save(self, file: HostPath, *, progress: ProgressListener = ignore_progress) -> Saved:
        """The template is in `file`, a tar of an OCI layout (docs/reference/artifact.md), and still in force here.

        `load` makes a template of it, on any host that it fits. What was in `file` before is replaced at the end. All
        that was in the machine's memory is in it, secrets too. Raises `TemplateNotFound` when this generation is gone,
        `TemplateCorrupt` when its RAM is not what was frozen, and `HostError`; the former file is as it was then.
        """
        moving = _load_moving()
        instance = Instance(self._source.instance.places, progress)
        saved: Saved = await moving.save_template(
            self.name, Path(check_local(file, field="file")), generation=self.generation, instance=instance
        )
        return saved

    @classmethod
    async def load(
        cls,
        file: HostPath,
        name: str = "",
        *,
        config: VMConfig | None = None,
        replace: bool = False,
        wait_s: float = 0.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """The template that `save` put into `file` is in force as `name`, by default under the name that it had.

        Whoever made `file` is trusted with all that forks of it do, and with what QEMU makes of its device state.
        `config` is as for `open`. It is held to no image of this host, and not to the host that it was frozen on.

        Raises `TemplateUnfit` (field, have, want) when emulator, machine type, accelerator or processor are not those
        that it was frozen with; its RAM is not read then. Raises `ArtifactError` when `file` is damaged or no template,
        and, as a build does, `TemplateExists`, `StoreBusy` and `HostError`. After any of them, and on cancel, what was
        there before is in force.
        """
        moving = _load_moving()
        target = moving.Target(
            instance=Instance(places or find_places(), progress),
            config=config or VMConfig(),
            name=name,
            replace_it=replace,
            wait_s=wait_s,
        )
        return cls(await moving.load_template(Path(check_local(file, field="file")), target))

    async def push(self, ref: str, *, plain_http: bool = False, progress: ProgressListener = ignore_progress) -> Saved:
        """The template is in a registry as `ref`, such as `registry.example/team/py:1`, and still in force here.

        Layers that are there are not sent again. Where a template that this one descends from is here, and in that
        repository, only the pages that differ are sent. Over TLS, unless `plain_http`, or on this host. Who we are is
        in Docker's file of credentials. Needs the extra `oci`. Raises what `save` raises, and `HostError` when the
        registry cannot be reached or refuses; `ref` is what it was then.
        """
        instance = Instance(self._source.instance.places, progress)
        pushed: Saved = await _load_moving().push_template(self._source, ref, plain_http=plain_http, instance=instance)
        return pushed

    @classmethod
    async def pull(
        cls,
        ref: str,
        name: str = "",
        *,
        config: VMConfig | None = None,
        replace: bool = False,
        plain_http: bool = False,
        wait_s: float = 0.0,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> Self:
        """The template in a registry as `ref` is in force as `name`, by default under the name that it had.

        It is trusted as its registry is. All else is as for `load` and `push`: whether it fits is looked at before its
        layers are fetched.
        """
        moving = _load_moving()
        target = moving.Target(
            instance=Instance(places or find_places(), progress),
            config=config or VMConfig(),
            name=name,
            replace_it=replace,
            wait_s=wait_s,
        )
        return cls(await moving.pull_template(ref, target, plain_http=plain_http))

    async def persist(self, *, progress: ProgressListener = ignore_progress) -> Saved:
        """The template is on disk too, below HOME, and there again after a reboot: its first use brings it back.

        So is what replaces it under its name, until it is removed. Raises what `save` raises.
        """
        instance = Instance(self._source.instance.places, progress)
        saved: Saved = await _load_moving().persist(self._source, instance=instance)
        return saved

    async def remove(self) -> None:
        """No template of this name exists, in memory or on disk; forks made from it run on.

        Raises `TemplateNotFound`, `StoreBusy`.
        """
        await self._source.remove()


def _read_recipe(recipe: Recipe | HostPath, name: str, config: VMConfig | None) -> tuple[Recipe, VMConfig | None]:
    """The recipe, or that of the template in the file at the path, and `config`, or what [vm] of the file says.

    Files are read: call it in a thread.
    """
    _, building = _load_making()
    if isinstance(recipe, building.Recipe):
        return cast("Recipe", recipe), config
    if not isinstance(recipe, (str, os.PathLike)):
        hint = "give a Recipe, or the path of a file; a table of its words is Recipe(**table)"
        raise ConfigError("recipe", recipe, f"{recipe!r} is no recipe", hint=hint)
    return cast("tuple[Recipe, VMConfig | None]", building.read_build(Path(recipe), name, config))


async def _close(vm: VM) -> None:
    await vm.aclose()


def _load_making() -> tuple[ModuleType, ModuleType]:
    """What audits templates, and what builds them."""
    audit, build, _ = _load_rare()
    return audit, build


def _load_moving() -> ModuleType:
    """What moves templates to and from files and registries."""
    return _load_rare()[2]


def _load_rare() -> tuple[ModuleType, ModuleType, ModuleType]:
    # Few templates are made or moved, and every fork would pay for what that needs: 14 ms (docs/decisions/0008).
    from vmfork.template import audit, build, moving  # noqa: PLC0415

    return audit, build, moving
