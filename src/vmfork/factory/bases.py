"""The bases of a factory: opened as its configuration says, watched, built in the background, closed."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmfork.errors import Closed, ConfigError, DeadlineExceeded, TemplateError, VMForkError
from vmfork.factory.build import BackgroundBuild
from vmfork.factory.cache import CacheFactory
from vmfork.factory.capacity import check_pool
from vmfork.factory.choice import Miss
from vmfork.factory.direct import DirectFactory
from vmfork.factory.health import Health
from vmfork.factory.kind import Listener
from vmfork.factory.remote import RemoteFactory
from vmfork.factory.template import TemplateFactory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from vmfork.config import FactoryConfig, Instance
    from vmfork.factory.held import CacheStatus
    from vmfork.factory.kind import Base

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Watched:
    """A base and how it has been doing. `is_built`: the factory may build the template that it is made from."""

    base: Base
    is_built: bool = False
    health: Health = field(default_factory=Health)


class Bases:
    """Owner of the bases that a configuration stands for. Empty where every machine is booted."""

    def __init__(self, config: FactoryConfig, *, fetch_only: bool, instance: Instance) -> None:
        self._config = config
        self._fetch_only = fetch_only
        self._instance = replace(instance, budget=config.budget)
        self._watched: list[_Watched] = []
        self._build = BackgroundBuild(self._build_template)
        self._built: TemplateFactory | None = None
        self._closed = False

    @property
    def is_direct(self) -> bool:
        """Whether every machine is booted because nothing else was asked for."""
        config = self._config
        return not (config.template or config.templates or config.cache or config.remote)

    @property
    def is_building(self) -> bool:
        return self._build.is_running

    @property
    def build_error(self) -> str:
        return self._build.last_error

    @property
    def resting(self) -> Mapping[str, str]:
        """The bases that are left alone for a while, by name, with their last error."""
        return {w.base.kind.name: w.health.last_error for w in self._watched if w.health.is_quarantined}

    @property
    def cache(self) -> CacheStatus | None:
        """What the pool holds, where there is one."""
        return next((w.base.status() for w in self._watched if isinstance(w.base, CacheFactory)), None)

    def __iter__(self) -> Iterator[Base]:
        return (watched.base for watched in self._watched)

    async def open(self) -> None:
        """The bases are open. After an error, all of them are closed."""
        try:
            await self._open()
            self._check_open()
        except BaseException:
            await self._close()
            raise

    async def find_ready(self) -> Sequence[Base] | Miss:
        """The bases that may be asked now, each refreshed just before; or why no base may be asked."""
        if not any(watched.is_built for watched in self._watched):
            self._build_if_allowed()
        ready: list[Base] = []
        miss = self._tell_absence()
        for watched in self._watched:
            if watched.health.is_quarantined:
                continue
            try:
                await watched.base.refresh()
            except VMForkError as error:
                self.note_failure(watched.base, error)
                miss = Miss(error.code, error.message)
            else:
                ready.append(watched.base)
        return ready or miss

    def _tell_absence(self) -> Miss:
        if self._watched:
            return Miss("quarantined", "; ".join(f"{name} rests: {error}" for name, error in self.resting.items()))
        name = self._config.template_name
        told = f": the last build failed: {self.build_error}" if self.build_error else " is being built"
        return Miss("template-not-ready", f"template {name!r}{told}")

    def note_success(self, base: Base) -> None:
        if (watched := self._find(base)) is not None:
            watched.health.note_success()

    def note_failure(self, base: Base, error: Exception) -> None:
        """`base` gave no machine: after several such failures in a row it rests.

        A template that is gone, or does not fit any more, is being built again where the factory may build it.
        """
        # A cache that is merely empty is no worse for it: that many ask at once is no fault of what it holds.
        if isinstance(error, DeadlineExceeded) and not (isinstance(base, CacheFactory) and base.is_failing):
            return
        _log.warning("%s gave no machine: %s", base.kind.name, error)
        # One that is stuck says so at once, and serves again as soon as it can: a rest would be longer than that.
        if (watched := self._find(base)) is None or (isinstance(base, CacheFactory) and base.is_stuck):
            return
        watched.health.note_failure(error)
        if watched.is_built and isinstance(error, TemplateError):
            self._build_if_allowed()

    def report_fallback(self, reason: str) -> None:
        """Bases that want to know are told that a machine was booted in place of theirs."""
        for base in self:
            if isinstance(base, Listener):
                base.report(fallback=reason)

    async def aclose(self) -> None:
        """The build has ended and every base is closed. Callers that wait for a machine get `Closed`."""
        self._closed = True
        await self._build.aclose()
        await self._close()

    def end(self) -> None:
        """No machine is held any more, at once and without an event loop."""
        self._closed = True
        for base in self:
            if isinstance(base, CacheFactory):
                base.end()

    async def _close(self) -> None:
        watched, self._watched = self._watched, []
        await asyncio.gather(*(each.base.aclose() for each in watched))

    async def _open(self) -> None:
        config = self._config
        if self._fetch_only and config.cache > 0:
            raise ConfigError(
                "factory.cache",
                config.cache,
                "a cache cannot be fetched",
                hint="it lives in the process that opened it",
            )
        if config.remote and config.cache == 0:
            self._watched.append(_Watched(await RemoteFactory.open(config, places=self._instance.places)))
            return
        await check_pool(config, instance=self._instance)
        if self._may_build:
            await self._use_or_build()
        elif config.template:
            await self._add(await self._make_template())
        elif config.cache:
            await self._add(await DirectFactory.open(config.vm, instance=self._instance))
        for name in config.templates:
            base = await TemplateFactory.fetch(name, config.vm, instance=self._instance)
            self._watched.append(_Watched(base))

    async def _make_template(self) -> TemplateFactory:
        name, vm = self._config.template_name, self._config.vm
        if self._fetch_only:
            return await TemplateFactory.fetch(name, vm, instance=self._instance)
        return await TemplateFactory.ensure(name, vm, instance=self._instance)

    @property
    def _may_build(self) -> bool:
        return self._config.template and self._config.build == "background" and not self._fetch_only

    async def _use_or_build(self) -> None:
        config = self._config
        try:
            base = await TemplateFactory.fetch(config.template_name, config.vm, instance=self._instance)
        except TemplateError:
            self._build.begin()
        else:
            await self._add_built(base)

    def _build_if_allowed(self) -> None:
        if self._may_build and not self._closed:
            self._build.begin()

    async def _build_template(self) -> None:
        config = self._config
        if self._built is not None:
            await self._built.rebuild()
            for watched in self._watched:
                if watched.is_built:
                    watched.health = Health()
            return
        made = await TemplateFactory.ensure(config.template_name, config.vm, instance=self._instance)
        await self._add_built(made)

    async def _add_built(self, base: TemplateFactory) -> None:
        await self._add(base, rebuild=base.rebuild)
        self._built = base

    async def _add(self, base: Base, *, rebuild: Callable[[], Awaitable[None]] | None = None) -> None:
        """`base`, or a cache over it, serves requests; it is closed when that fails. `rebuild`: we may build it."""
        config = self._config
        if config.cache:
            try:
                base = await CacheFactory.open(
                    base, config.cache, least=config.cache_min, ttl_s=config.cache_ttl_s, rebuild=rebuild
                )
            except BaseException:
                await base.aclose()
                raise
        if self._closed:
            await base.aclose()
            self._check_open()
        # Before those that are only fetched, whenever it came: of two that fit alike, the first is taken.
        self._watched.insert(0, _Watched(base, is_built=rebuild is not None))

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("factory")

    def _find(self, base: Base) -> _Watched | None:
        return next((watched for watched in self._watched if watched.base is base), None)
