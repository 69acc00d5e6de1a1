"""The outer factory: whatever the base, what it gives runs, is adopted, and is what was asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from vmfork.adopt.identity import check_env
from vmfork.adopt.thaw import check_files
from vmfork.config import FactoryConfig, VMConfig, find_places
from vmfork.errors import (
    AdoptError,
    Closed,
    ConfigError,
    DeadlineExceeded,
    ExecError,
    FitError,
    GuestError,
    HostError,
    LaunchError,
    StoreBusy,
    TemplateError,
    TemplateStale,
    VMForkError,
    VMNotFound,
)
from vmfork.factory.cache import CacheFactory, CacheStatus
from vmfork.factory.choice import Choice, Want, choose
from vmfork.factory.direct import DirectFactory
from vmfork.factory.health import Health
from vmfork.factory.kind import Listener
from vmfork.factory.remote import RemoteFactory
from vmfork.factory.template import TemplateFactory
from vmfork.machine.fit import fit
from vmfork.progress import ignore_progress
from vmfork.units import format_mib

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from vmfork.config import Places
    from vmfork.factory.kind import Base
    from vmfork.hypervisor.base import Hardware
    from vmfork.machine.vm import VM
    from vmfork.progress import ProgressListener

_log = logging.getLogger(__name__)

# A fork that failed is tried once more: the host may have been short of something for a moment.
_TRIES = 2
# What another try, or a booted machine, may mend. A hook that fails is the user's to mend, and is told.
_MENDABLE = (
    LaunchError, HostError, TemplateError, DeadlineExceeded, AdoptError, GuestError, FitError, StoreBusy, VMNotFound,
    Closed,
)  # fmt: skip
_NOT_READY = "template-not-ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryStats:
    """Counts since the factory was made.

    `given` maps the name of a base, or `direct`, to how many VMs it gave. `choices` counts why a base was taken
    (`exact`, `grown`, `larger`), `fallbacks` why a VM was booted in place of coming from a base. `retries`: forks that
    were tried again. `quarantined`: bases that rest after failing, with their last error. `building`: the template is
    being built in the background; `build_error`: why the last such build failed. `cache`: what the pool holds.
    """

    requests: int
    from_base: int
    given: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, int] = field(default_factory=dict)
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    quarantined: Mapping[str, str] = field(default_factory=dict)
    building: bool = False
    build_error: str = ""
    cache: CacheStatus | None = None


@dataclass(slots=True)
class _Request:
    """What was asked for, and `direct`, which can boot it."""

    config: VMConfig
    direct: DirectFactory
    env: Mapping[str, str] | None
    files: Mapping[str, bytes | str] | None
    timeout_s: float | None
    begun: float = field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """Seconds in which a machine that others make must be there."""
        limit_s = self.config.fork_timeout_s if self.timeout_s is None else self.timeout_s
        return max(0.0, limit_s - (time.monotonic() - self.begun))


class Factory:
    """VMs on request: from a base that matches, grown where it is smaller; else booted, counted with the reason.

    ```
    template  remote  cache  fetch_only  base
    no        no      0      no          direct: boots
    no        no      0      yes         direct: boots
    yes       no      0      no          template: built now; TemplateExists when there is one
    yes       no      0      yes         template: fetched; TemplateNotFound when there is none
    no        any     > 0    no          cache over direct
    no        any     > 0    yes         ConfigError
    yes       any     > 0    no          cache over template: built now; TemplateExists when there is one
    yes       any     > 0    yes         ConfigError
    any       yes     0      no          remote: asks the cache server
    any       yes     0      yes         remote: asks the cache server
    ```
    With `build = "background"` a template that is missing is built while machines are booted, and one that is there is
    used. Making a factory does nothing yet: it opens at the first `get_vm`, at `open()`, or on entering its block.
    """

    def __init__(
        self,
        config: FactoryConfig | None = None,
        *,
        fetch_only: bool = False,
        progress: ProgressListener = ignore_progress,
        places: Places | None = None,
    ) -> None:
        self.config = config or FactoryConfig()
        self._fetch_only = fetch_only
        self._progress = progress
        self._places = places or find_places()
        self._bases: list[Base] = []
        self._health: dict[str, Health] = {}
        self._direct: dict[VMConfig, DirectFactory] = {}
        self._opening = asyncio.Lock()
        self._building: asyncio.Task[None] | None = None
        self._build_health = Health(limit=1)
        self._has_first = False
        self._is_open = False
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._given: Counter[str] = Counter()
        self._choices: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter()

    async def open(self) -> Self:
        """The bases are ready. Opening again does nothing. Errors are those of the bases; it stays unopened then."""
        self._check_open()
        async with self._opening:
            if not self._is_open:
                try:
                    await self._open_bases()
                    self._check_open()
                except BaseException:
                    await self._close_bases()
                    raise
                self._is_open = True
        return self

    async def get_vm(
        self,
        config: VMConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout_s: float | None = None,
    ) -> VM:
        """A running VM of exactly this configuration (the factory's own by default), adopted and answering.

        `timeout_s` bounds the wait for a machine of a cache (by default the configuration's `fork_timeout_s`); then one
        is booted. A base larger than the request is a `ConfigError`, unless `oversize` is `allow`. `AdoptError` when a
        hook of the template failed, `LaunchError`, `HostError`; nothing is left after any of them.
        """
        check_env(env or {})
        check_files(files or {})
        await self.open()
        wanted = config or self.config.vm
        request = _Request(wanted, await self._get_direct(wanted), env, files, timeout_s)
        self._counts["requests"] += 1
        reason = ""
        for left in reversed(range(_TRIES)):
            choice = await self._choose(request.direct)
            if choice.base is None:
                if choice.reason == "oversize":
                    raise self._refuse(wanted)
                reason = reason or choice.reason
                break
            if choice.base is request.direct:
                vm = await self._boot(request)
                self._choices[choice.reason] += 1
                return vm
            try:
                return await self._give(choice.base, choice.reason, request)
            except _MENDABLE as error:
                self._check_open()
                if _is_the_users(error):
                    raise
                reason = error.code
                if left and not isinstance(error, (TemplateError, DeadlineExceeded)):
                    self._counts["retries"] += 1
                    continue
                self._note_failure(choice.base, error)
                break
        self._check_open()
        self._fall_back(reason)
        return await self._boot(request)

    async def _choose(self, wanted: DirectFactory) -> Choice:
        """The base for a request, and why; no base and the reason where it has to be booted."""
        if self._is_direct:
            return Choice(wanted, "exact")
        ready: list[Base] = []
        reason = "quarantined" if self._bases else _NOT_READY
        for base in self._bases:
            if self._health_of(base).is_quarantined:
                continue
            try:
                await base.refresh()
            except VMForkError as error:
                self._note_failure(base, error)
                reason = error.code
            else:
                ready.append(base)
        if not ready:
            self._build_if_due(reason)
            return Choice(None, reason)
        want = Want(wanted.kind.traits, wanted.kind.hardware.cpus, wanted.kind.hardware.memory_mib)
        return choose(ready, want, oversize=self.config.oversize == "allow")

    async def _give(self, base: Base, why: str, request: _Request) -> VM:
        base_vm = await base.get_base_vm(timeout_s=request.left_s())
        wanted = request.config
        vm = await base_vm.adopt(
            env=request.env,
            files=request.files,
            timeout_s=wanted.fork_timeout_s,
            hook_timeout_s=wanted.hook_timeout_s,
        )
        try:
            have = vm.hardware
            if why != "larger":
                _check_not_larger(base, have, wanted)
            if have.cpus < wanted.cpus or have.memory_mib < wanted.memory_mib:
                await fit(vm, cpus=max(have.cpus, wanted.cpus), memory_mib=max(have.memory_mib, wanted.memory_mib))
        except BaseException:
            await vm.aclose()
            raise
        self._health_of(base).note_success()
        self._choices[why] += 1
        self._given[base.kind.name] += 1
        if isinstance(base, Listener):
            base.report(phases=_phases_of(vm))
            vm.on_first_exec(lambda seconds: base.report(phases={"first_exec": seconds}))
        return vm

    async def _boot(self, request: _Request) -> VM:
        base_vm = await request.direct.get_base_vm()
        vm = await base_vm.adopt(env=request.env, files=request.files, timeout_s=request.config.boot_timeout_s)
        self._given["direct"] += 1
        return vm

    def _note_failure(self, base: Base, error: Exception) -> None:
        # A cache that is merely empty is no worse for it: that many ask at once is no fault of what it holds.
        if isinstance(error, DeadlineExceeded) and not (isinstance(base, CacheFactory) and base.is_failing):
            return
        self._health_of(base).note_failure(error)
        _log.warning("%s gave no machine: %s", base.kind.name, error)

    def _fall_back(self, reason: str) -> None:
        self._fallbacks[reason] += 1
        _log.info("booting a machine: %s", reason)
        for base in self._bases:
            if isinstance(base, Listener):
                base.report(fallback=reason)

    def stats(self) -> FactoryStats:
        """What was asked and given so far."""
        caches = [base for base in self._bases if isinstance(base, CacheFactory)]
        return FactoryStats(
            requests=self._counts["requests"],
            from_base=sum(self._choices.values()),
            given=dict(self._given),
            choices=dict(self._choices),
            fallbacks=dict(self._fallbacks),
            retries=self._counts["retries"],
            quarantined={name: h.last_error for name, h in self._health.items() if h.is_quarantined},
            building=self._building is not None and not self._building.done(),
            build_error=self._build_health.last_error,
            cache=caches[0].status() if caches else None,
        )

    async def aclose(self) -> None:
        """No VM can be asked for any more; who waits for one gets `Closed`. Those given out, and templates, stay."""
        self._closed = True
        if self._building is not None:
            self._building.cancel()
            await asyncio.wait({self._building})
        await self._close_bases()

    async def _close_bases(self) -> None:
        bases, self._bases = self._bases, []
        await asyncio.gather(*(base.aclose() for base in bases))

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open_bases(self) -> None:
        config = self.config
        if self._fetch_only and config.cache > 0:
            raise ConfigError(
                "factory.cache",
                config.cache,
                "a cache cannot be fetched",
                hint="it lives in the process that opened it",
            )
        if config.remote and config.cache == 0:
            self._bases.append(await RemoteFactory.open(config, places=self._places))
            return
        if config.template and config.build == "background" and not self._fetch_only:
            await self._use_or_build()
        elif config.template:
            await self._add(await self._make_template())
        elif config.cache:
            await self._add(await self._get_direct(config.vm))
        for name in config.templates:
            self._bases.append(await TemplateFactory.fetch(name, config.vm, places=self._places))

    @property
    def _is_direct(self) -> bool:
        """Whether every machine is booted because nothing else was asked for."""
        config = self.config
        return not (config.template or config.templates or config.cache or config.remote)

    async def _make_template(self) -> TemplateFactory:
        name, config = self.config.template_name, self.config.vm
        if self._fetch_only:
            return await TemplateFactory.fetch(name, config, places=self._places)
        return await TemplateFactory.create(name, config, places=self._places, progress=self._progress)

    async def _use_or_build(self) -> None:
        config = self.config
        try:
            base = await TemplateFactory.fetch(config.template_name, config.vm, places=self._places)
        except TemplateError:
            self._building = asyncio.create_task(self._build_in_background())
            return
        await self._add(base)

    def _build_if_due(self, reason: str) -> None:
        """One build is under way, where the template is missing and no build failed a moment ago."""
        config = self.config
        if not config.template or config.build != "background" or self._fetch_only or self._closed:
            return
        if reason != _NOT_READY and not reason.startswith("template-"):
            return
        if (self._building is None or self._building.done()) and not self._build_health.is_quarantined:
            self._building = asyncio.create_task(self._build_in_background())

    async def _build_in_background(self) -> None:
        """Once, whoever asks: after a build that fails the factory boots, says why, and builds again after a rest."""
        config = self.config
        try:
            base = await TemplateFactory.ensure(
                config.template_name, config.vm, places=self._places, progress=self._progress
            )
            if not self._has_first:  # else it finds the new template itself
                await self._add(base, at=0)
        except Exception as error:  # noqa: BLE001 - whatever it is, machines are booted meanwhile
            _log.warning("the template %r could not be built: %s", config.template_name, error)
            self._build_health.note_failure(error)
            return
        self._build_health = Health(limit=1)
        self._health.clear()

    async def _add(self, base: Base, *, at: int | None = None) -> None:
        """`base`, or a cache over it, serves requests; it is closed when that fails."""
        if self.config.cache:
            base = await self._cached(base)
        if self._closed:
            await base.aclose()
            self._check_open()
        self._bases.insert(len(self._bases) if at is None else at, base)
        self._has_first = True

    async def _cached(self, base: Base) -> CacheFactory:
        try:
            return await CacheFactory.open(base, self.config.cache, ttl_s=self.config.cache_ttl_s)
        except BaseException:
            await base.aclose()
            raise

    async def _get_direct(self, config: VMConfig) -> DirectFactory:
        """What `config` stands for here: both what a base must match and what is booted where it does not."""
        if config not in self._direct:
            self._direct[config] = await DirectFactory.open(config, places=self._places, progress=self._progress)
        return self._direct[config]

    def _health_of(self, base: Base) -> Health:
        return self._health.setdefault(base.kind.name, Health())

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("factory")

    def _refuse(self, wanted: VMConfig) -> ConfigError:
        sizes = ", ".join(_spell(base.kind.hardware) for base in self._bases)
        return ConfigError(
            "vm",
            wanted,
            f"{_spell(wanted)} were asked for, what is ready is larger: {sizes}",
            hint='take it as it is with oversize = "allow" in [factory], or add a template of that size to `templates`',
        )


def _phases_of(vm: VM) -> dict[str, float]:
    spent = vm.timings
    phases = {"adopt": spent.answer_s + spent.clock_s + spent.thaw_s}
    return phases | {"fit": spent.fit_s} if spent.fit_s else phases


def _check_not_larger(base: Base, have: Hardware, wanted: VMConfig) -> None:
    if have.cpus > wanted.cpus or have.memory_mib > wanted.memory_mib:
        # What it is made from was replaced between the choice and the taking.
        raise TemplateStale(base.kind.name, "size", _spell(have), _spell(wanted))


def _spell(size: Hardware | VMConfig) -> str:
    return f"{size.cpus} CPU and {format_mib(size.memory_mib)}"


def _is_the_users(error: Exception) -> bool:
    """Whether the same would happen again: a hook or a file of the user's failed, or a closed factory was asked."""
    if isinstance(error, AdoptError):
        return error.item.startswith(("hook ", "file "))
    return isinstance(error, ExecError)
