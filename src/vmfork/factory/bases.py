"""The bases of a factory: opened as its configuration says, watched, built in the background, closed."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.errors import Closed, ConfigError, DeadlineExceeded, TemplateError, VMForkError
from vmfork.factory.build import BackgroundBuild
from vmfork.factory.cache import CacheFactory
from vmfork.factory.capacity import check_pool
from vmfork.factory.choice import Miss
from vmfork.factory.direct import DirectFactory
from vmfork.factory.health import Health
from vmfork.factory.kind import Listener
from vmfork.factory.remote import open_remote
from vmfork.factory.slot import ABSENT, Slot
from vmfork.factory.template import Past, TemplateFactory, find_own_recipe, find_past
from vmfork.journal import about, code_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from vmfork.config import FactoryConfig, Instance
    from vmfork.factory.held import CacheStatus
    from vmfork.factory.kind import Base
    from vmfork.factory.slot import Watched
    from vmfork.template.recipe import Recipe

_log = logging.getLogger(__name__)


class Bases:
    """Owner of the bases that a configuration stands for. It has none when every machine is booted."""

    def __init__(self, config: FactoryConfig, *, fetch_only: bool, instance: Instance) -> None:
        self._config = config
        self._fetch_only = fetch_only
        self._instance = replace(instance, budget=config.budget)
        self._slots: list[Slot] = []
        self._build = BackgroundBuild(self._build_template)
        self._own: Slot | None = None  # the slot of the template that the build makes
        self._recipe: Recipe | None = None
        self._built: TemplateFactory | None = None
        self._closed = False

    @property
    def is_direct(self) -> bool:
        """Whether every machine is booted because nothing else was asked for."""
        config = self._config
        return not (config.template_names or config.cache or config.remote)

    @property
    def is_building(self) -> bool:
        return self._build.is_running

    @property
    def build_error(self) -> str:
        return self._build.last_error

    @property
    def is_warmed(self) -> bool:
        """Whether any of their machines are more than booted ones."""
        return any(slot.is_warmed for slot in self._slots)

    @property
    def resting(self) -> Mapping[str, str]:
        """The names of the bases that rest for a while, each with its last error."""
        return {w.base.kind.name: w.health.last_error for w in self._watched if w.health.is_quarantined}

    @property
    def pools(self) -> Mapping[str, CacheStatus]:
        """What each pool holds, by the name of its base."""
        return {base.kind.name: base.status() for base in self if isinstance(base, CacheFactory)}

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

    def find_slot(self, template: str = "") -> Slot | None:
        """The slot for a request that names `template`; without a name, the first slot."""
        return next((slot for slot in self._slots if not template or slot.may_offer(template)), None)

    def find_slot_of(self, base: Base) -> Slot | None:
        """The slot that `base` is in."""
        return next((slot for slot in self._slots for watched in slot.watched if watched.base is base), None)

    def list_templates(self) -> tuple[str, ...]:
        """The names of the templates that a request may name, as far as they are known."""
        named = (slot.template for slot in self._slots)
        return tuple(dict.fromkeys(name for name in (*named, *(base.kind.template for base in self)) if name))

    async def find_ready(self, template: str = "") -> Sequence[Base] | Miss:
        """The bases that may be asked now, each refreshed just before; or why no base may be asked.

        With `template`, those of that template alone.
        """
        if self._own is not None and not self._own.watched:
            self._build_if_allowed()
            self._own.miss = self._tell_build(self._own)
        asked = [slot for slot in self._slots if not template or slot.may_offer(template)]
        ready = [base for slot in asked for base in await self._find_ready_of(slot, template)]
        if ready:
            return ready
        misses = [slot.miss for slot in asked]
        return next((miss for miss in misses if miss.reason != "quarantined"), misses[0] if misses else Miss("no base"))

    def note_success(self, base: Base) -> None:
        if (watched := self._find(base)) is not None:
            watched.health.note_success()

    def note_failure(self, base: Base, error: Exception) -> None:
        """`base` gave no machine: after several such failures in a row it rests.

        Not so a template that is gone, or does not fit any more: it is being built again where the factory may build
        it, and looked for at each request.
        """
        # A cache that is merely empty has not failed: many callers asked at once.
        if isinstance(error, DeadlineExceeded) and not (isinstance(base, CacheFactory) and base.is_failing):
            return
        said = about("base.failed", template=base.kind.template, error=code_of(error))
        _log.warning("%s gave no machine: %s", base.kind.name, error, extra=said)
        # A cache that is stuck says so at once, and serves again as soon as it can. A rest would last longer.
        if (watched := self._find(base)) is None or (isinstance(base, CacheFactory) and base.is_stuck):
            return
        if not isinstance(error, TemplateError):
            watched.health.note_failure(error)
        # Looking whether a template is there costs nothing to speak of: one that is there again is used at once.
        elif self._own is not None and watched in self._own.watched:
            self._build_if_allowed()

    def report_fallback(self, reason: str) -> None:
        """A server is told, once, that a request was not served from its pool."""
        if (listener := next((base for base in self if isinstance(base, Listener)), None)) is not None:
            listener.report(fallback=reason)

    async def aclose(self) -> None:
        """The build has ended and every base is closed. Callers that wait for a machine get `Closed`."""
        self._closed = True
        await self._build.aclose()
        await self._close()

    def end(self) -> None:
        """No machine is held any more. Where the event loop runs, what is under way ends soon."""
        self._closed = True
        self._build.cancel()
        for base in self:
            if isinstance(base, CacheFactory):
                base.end()

    @property
    def _watched(self) -> Iterator[Watched]:
        return (watched for slot in self._slots for watched in slot.watched)

    async def _close(self) -> None:
        slots, self._slots = self._slots, []
        await asyncio.gather(*(slot.aclose() for slot in slots))

    async def _open(self) -> None:
        config = self._config
        if self._fetch_only and config.cache > 0:
            raise ConfigError(
                "factory.cache",
                config.cache,
                "a cache cannot be fetched",
                hint="it lives in the process that opened it",
            )
        self._own = self._built = None
        self._recipe = find_own_recipe(config)
        self._slots = [*self._plan()]
        if not config.remote or config.cache:
            await check_pool(config, instance=self._instance)
        for slot in self._slots:
            await (self._use_or_build(slot) if slot is self._own else self._open_slot(slot))

    def _plan(self) -> Iterator[Slot]:
        """A slot for each entry of the configuration, in the order in which they are preferred."""
        config = self._config
        if config.remote and config.cache == 0:
            yield Slot(self._opening(lambda: open_remote(config, places=self._instance.places)))
            return
        for name in config.template_names:
            is_own = config.template and name == config.template_name
            past = find_past(name, instance=self._instance)
            if is_own and self._recipe is not None:
                past = Past(recipe=self._recipe.name, config=config.vm)
            if is_own and self._may_build:
                self._own = Slot(None, template=name, past=past)
                yield self._own
            else:
                yield Slot(self._opening(self._finding(name, is_own=is_own)), template=name, past=past)
        if config.cache and not config.template_names:
            yield Slot(self._opening(self._planning_boots))

    def _finding(self, name: str, *, is_own: bool) -> Callable[[], Awaitable[Sequence[Base]]]:
        find = TemplateFactory.ensure if is_own and not self._fetch_only else TemplateFactory.fetch
        recipe = self._recipe if is_own else None

        async def open_template() -> Sequence[Base]:
            return [await self._pooled(await find(name, self._config.vm, instance=self._instance, recipe=recipe))]

        return open_template

    async def _planning_boots(self) -> Sequence[Base]:
        return [await self._pooled(await DirectFactory.open(self._config.vm, instance=self._instance))]

    def _opening(self, open_bases: Callable[[], Awaitable[Sequence[Base]]]) -> Callable[[], Awaitable[Sequence[Base]]]:
        """`open_bases`, closing what came of it when the factory was closed meanwhile."""

        async def open_them() -> Sequence[Base]:
            bases = await open_bases()
            if self._closed:
                await asyncio.gather(*(base.aclose() for base in bases))
                self._check_open()
            return bases

        return open_them

    async def _open_slot(self, slot: Slot) -> None:
        """It is open, or absent when the configuration can do without it."""
        try:
            await slot.open()
        except ABSENT as error:
            if self._closed or self._config.missing == "refuse":
                raise
            slot.note_absence(error)

    @property
    def _may_build(self) -> bool:
        return self._config.template and self._config.build == "background" and not self._fetch_only

    async def _use_or_build(self, slot: Slot) -> None:
        try:
            vm, recipe = self._config.vm, self._recipe
            found = await TemplateFactory.fetch(slot.template, vm, instance=self._instance, recipe=recipe)
            await self._fill_built(found)
        except TemplateError:
            self._build.begin()

    def _build_if_allowed(self) -> None:
        if self._may_build and not self._closed:
            self._build.begin()

    async def _build_template(self) -> None:
        assert self._own is not None
        if self._built is not None:
            await self._built.rebuild()
            for watched in self._own.watched:
                watched.health = Health()
            return
        name, vm, recipe = self._own.template, self._config.vm, self._recipe
        made = await TemplateFactory.ensure(name, vm, instance=self._instance, recipe=recipe)
        await self._fill_built(made)

    async def _fill_built(self, base: TemplateFactory) -> None:
        assert self._own is not None

        async def pooled() -> Sequence[Base]:
            return [await self._pooled(base, rebuild=base.rebuild)]

        self._own.fill(await self._opening(pooled)())
        self._built = base

    def _tell_build(self, slot: Slot) -> Miss:
        told = f"could not be built: {self.build_error}" if self.build_error else "is being built"
        return Miss("template-not-ready", f"template {slot.template!r} {told}")

    async def _pooled(self, base: Base, *, rebuild: Callable[[], Awaitable[None]] | None = None) -> Base:
        """`base`, or a pool over it when one is kept. It is closed when that fails. With `rebuild` we may build it."""
        config = self._config
        if not config.cache:
            return base
        try:
            return await CacheFactory.open(
                base, config.cache, least=config.cache_min, ttl_s=config.cache_ttl_s, rebuild=rebuild
            )
        except BaseException:
            await base.aclose()
            raise

    async def _find_ready_of(self, slot: Slot, template: str) -> list[Base]:
        if slot is not self._own:
            await slot.try_open()
        ready: list[Base] = []
        for watched in (*slot.watched,):
            if template and watched.base.kind.template != template:
                continue
            if watched.health.is_quarantined:
                slot.miss = Miss("quarantined", f"{watched.base.kind.name} rests: {watched.health.last_error}")
                continue
            try:
                await watched.base.refresh()
            except VMForkError as error:
                self.note_failure(watched.base, error)
                slot.miss = Miss(error.code, error.message)
            else:
                ready.append(watched.base)
        return ready

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("factory")

    def _find(self, base: Base) -> Watched | None:
        return next((watched for watched in self._watched if watched.base is base), None)
