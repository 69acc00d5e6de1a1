"""Keeps machines of any other base ready: started, exercised, and paused until they are asked for."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from vmfork.errors import Closed, DeadlineExceeded, HostError, TemplateError, TemplateStale, VMForkError
from vmfork.factory.capacity import check_size
from vmfork.factory.demand import Demand
from vmfork.factory.discards import Discards
from vmfork.factory.held import CacheStatus, Held
from vmfork.factory.line import Line, result_of
from vmfork.factory.starter import CONCURRENCY, Starter
from vmfork.journal import about
from vmfork.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.factory.kind import Base, Kind
    from vmfork.machine.base import BaseVM

_log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 5.0
# Making a machine slows the one that was just taken. When no caller waits, the next start waits this long.
REFILL_DELAY_S = 0.1
# A machine that stands still answers within milliseconds, or not at all.
CHECK_LIMIT_S = 1.0
# A machine has at least this long to answer, even when its caller has less: a hurried caller must not condemn it.
LEAST_CHECK_LIMIT_S = 0.25
DEFAULT_TTL_S = 3600.0


class CacheFactory(Owner):
    """Owner of `size` parked machines of `base`, and of `base` itself; with `least`, of as many of them as are needed.

    A machine that died, hangs, is older than `ttl_s` seconds, or is of another generation than `base` gives now, is
    replaced. Use `open`; `aclose()` ends all of it.

    A machine that is made for a waiting caller is handed over without being exercised and parked: its first program
    costs the caller 50 ms more (TCG), and exercising it first would cost him as much.
    """

    def __init__(
        self,
        base: Base,
        demand: Demand,
        *,
        ttl_s: float,
        concurrency: int,
        check_interval_s: float,
        rebuild: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._base = base
        self._may_rebuild = rebuild is not None
        self._demand = demand
        self._ttl_s = ttl_s
        self._check_interval_s = check_interval_s
        self._line = Line()
        self._starter = Starter(
            base,
            self._line,
            concurrency=concurrency,
            rebuild=rebuild,
            on_ready=self._offer,
            on_failure=self._announce,
        )
        self._discards = Discards()
        self._loop = asyncio.get_running_loop()
        self._tending: asyncio.Task[None] | None = None
        self._refilling: asyncio.TimerHandle | None = None
        self._filled = asyncio.Event()
        self._stuck = asyncio.Event()
        self._unstuck = asyncio.Event()
        self._unstuck.set()
        self._closed = False
        self._counts: Counter[str] = Counter()

    @classmethod
    async def open(
        cls,
        base: Base,
        size: int,
        *,
        least: int | None = None,
        ttl_s: float = DEFAULT_TTL_S,
        concurrency: int = CONCURRENCY,
        check_interval_s: float = CHECK_INTERVAL_S,
        rebuild: Callable[[], Awaitable[None]] | None = None,
    ) -> Self:
        """A cache that begins to fill. Raises `ConfigError` for a size that the host's memory does not allow.

        `rebuild` makes the template of `base` again when a start finds it gone or stale. Without it such a start fails.
        With `least` it holds between `least` and `size`, as many as are taken (see `Demand`).
        """
        check_size(size, base.kind)
        cache = cls(
            base,
            Demand(size if least is None else least, size),
            ttl_s=ttl_s,
            concurrency=concurrency,
            check_interval_s=check_interval_s,
            rebuild=rebuild,
        )
        cache._fill()
        cache._tending = asyncio.create_task(cache._tend())
        return cache

    @property
    def kind(self) -> Kind:
        kind = self._base.kind
        return replace(kind, name=f"cache of {kind.name}", where="pool")

    @property
    def is_failing(self) -> bool:
        """Whether the last start failed."""
        return self._starter.is_failing

    @property
    def is_stuck(self) -> bool:
        """Whether it holds no machine and its last start failed: a caller would wait in vain."""
        return self.is_failing and not self._line.ready

    async def wait_stuck(self) -> None:
        """It `is_stuck`."""
        await self._stuck.wait()

    async def wait_unstuck(self) -> None:
        """It is not stuck."""
        await self._unstuck.wait()

    async def refresh(self) -> None:
        """Machines of another generation than the base gives now are gone.

        When the base fails, all its machines are gone, and its error is raised unless it may be rebuilt. A machine that
        was forked before its template went stale runs on the emulator of its time: it stays, and is given. Raises
        `HostError`, with the reason, when the cache is stuck.
        """
        await self._look()
        if self.is_stuck:
            raise HostError(f"{self.kind.name} holds no machine, and its last start failed: {self._starter.last_error}")

    async def _look(self) -> None:
        try:
            await self._base.refresh()
        except TemplateStale:
            if not (self._line.ready or self._may_rebuild):
                raise
        except TemplateError:
            self._drop(lambda _: "replaced")
            if not self._may_rebuild:
                raise
        except VMForkError:
            self._drop(lambda _: "replaced")
            raise
        self._drop(lambda held: None if self._is_current(held) else "replaced")

    async def wait_full(self, *, timeout_s: float | None = None) -> None:
        """As many machines are ready as it is to hold now. Raises `DeadlineExceeded`, `Closed`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._closed and len(self._line.ready) < self._demand.size:
                    self._filled.clear()
                    await self._filled.wait()
        except TimeoutError:
            raise self._late(f"filling the {self.kind.name}", timeout_s) from None
        self._check_open()

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A parked machine that answered just now. Waits for one, `timeout_s` seconds at most (`None`: for ever).

        Raises `DeadlineExceeded`, with the last failed start if there was one, and `Closed` when the cache is closed,
        before the call or during it. On cancel the machine stays in the cache.
        """
        self._check_open()
        await self._look()
        self._demand.note_take(make_s=self._starter.make_s)
        end, waited = math.inf if timeout_s is None else time.monotonic() + timeout_s, False
        while True:
            waited |= not self._line.ready
            held = await self._take(end, timeout_s)
            if await self._is_healthy(held, end):
                self._line.leaving.discard(held)
                self._counts["misses" if waited else "hits"] += 1
                return held.base_vm

    def status(self) -> CacheStatus:
        """What it holds and did."""
        return CacheStatus(
            size=self._demand.size,
            least=self._demand.least,
            most=self._demand.most,
            ready=len(self._line.ready),
            refilling=self._starter.count,
            waiting=self._line.waiting,
            given=self._counts["hits"] + self._counts["misses"],
            hits=self._counts["hits"],
            misses=self._counts["misses"],
            failed=self._starter.failed,
            last_error=self._starter.last_error,
            dropped=dict(self._discards.reasons),
            closed=self._closed,
            vms=tuple(held.describe() for held in self._line.ready),
        )

    async def aclose(self) -> None:
        """Callers that wait got `Closed`, every machine that is held is gone, and the base is closed.

        On cancel the machines still end.
        """
        tasks = self._stop()
        for held in self._line.clear():
            self._discards.end(held)
        if tasks:
            await asyncio.wait(tasks)
        await self._discards.wait()
        await self._base.aclose()

    def end(self) -> None:
        """Every machine that is held is gone at once. Starts under way end as soon as the event loop, if any, runs."""
        self._closed = True
        if self._loop.is_running():
            self._stop()
        for held in self._line.clear():
            held.base_vm.end()

    def _stop(self) -> set[asyncio.Task[None]]:
        """Callers that wait got `Closed`, and nothing more is begun. What was under way is over with these tasks."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
        self._line.dismiss(Closed(self.kind.name))
        self._filled.set()
        tasks = {*self._starter.close()}
        if self._tending is not None:
            self._tending.cancel()
            tasks.add(self._tending)
        return tasks

    async def _take(self, end: float, timeout_s: float | None) -> Held:
        self._check_open()
        # Without a wait there is no point at which a cancellation could lose what was taken.
        if (held := self._line.take()) is not None:
            self._announce()
            self._fill_soon()
            return held
        place = self._line.join()
        self._fill()
        try:
            async with asyncio.timeout(None if end == math.inf else max(0.0, end - time.monotonic())):
                return await place
        except TimeoutError:
            if (held := result_of(place)) is not None:
                return held  # it arrived in the tick in which the time ran out
            raise self._late(f"waiting for a machine of the {self.kind.name}", timeout_s) from None
        except asyncio.CancelledError:
            if (held := result_of(place)) is not None:
                self._put_back(held)
            raise
        finally:
            self._line.leave(place)

    def _offer(self, held: Held, *, first: bool = False) -> None:
        if self._line.offer(held, first=first):
            self._fill_soon()
        elif len(self._line.ready) >= self._demand.size:
            self._filled.set()
        self._announce()

    def _put_back(self, held: Held) -> None:
        self._line.leaving.discard(held)
        if self._closed:
            return
        if held.parked:
            self._offer(held, first=True)
        else:
            self._discards.end(held)
            self._fill()

    def _fill_soon(self) -> None:
        if self._line.waiting:
            self._fill()
        elif self._refilling is None and not self._closed:
            self._refilling = asyncio.get_running_loop().call_later(REFILL_DELAY_S, self._refill)

    def _refill(self) -> None:
        self._refilling = None
        self._fill()

    def _late(self, what: str, timeout_s: float | None) -> DeadlineExceeded:
        hint = f"the last start failed: {self._starter.last_error}" if self._starter.last_error else ""
        return DeadlineExceeded(what, timeout_s or 0.0, hint=hint)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(self.kind.name)

    def _is_current(self, held: Held) -> bool:
        return held.generation == self._base.kind.generation

    async def _is_healthy(self, held: Held, end: float) -> bool:
        """Whether it may be handed out; else it is ended. Raises `Closed` when the cache was closed meanwhile."""
        limit_s = min(CHECK_LIMIT_S, max(LEAST_CHECK_LIMIT_S, end - time.monotonic()))
        try:
            # A machine that was not parked answered when it was given to this caller.
            trouble = await held.find_trouble(limit_s) if held.parked else None
        except asyncio.CancelledError:
            self._put_back(held)
            raise
        self._check_open()
        if trouble is None and self._is_current(held):
            return True
        self._discard(held, "unhealthy" if trouble else "replaced", trouble or "")
        return False

    def _fill(self) -> None:
        """As many starts are under way as machines are missing."""
        # One at least for callers that wait: they may have waited for so long that their asking was forgotten.
        wanted = self._demand.size or min(1, self._line.waiting)
        while not self._closed and len(self._line.ready) + self._starter.count < wanted:
            self._starter.start()

    def _announce(self) -> None:
        """Whoever waits for the cache to be stuck, or not to be, goes on."""
        for event, is_so in ((self._stuck, self.is_stuck), (self._unstuck, not self.is_stuck)):
            if is_so:
                event.set()
            else:
                event.clear()

    async def _tend(self) -> None:
        """Replaces machines that are too old or do not answer, from time to time. Never ends."""
        while True:
            await asyncio.sleep(self._check_interval_s)
            self._drop(lambda held: "expired" if held.age_s > self._ttl_s else None)
            self._drop_surplus()
            try:
                await self._look()
            except VMForkError:
                pass  # a template that is gone is told by the next start
            except Exception:  # noqa: BLE001 - the machines it holds are looked at all the same
                _log.exception("%s: what it is made from could not be looked at", self.kind.name)
            for held in list(self._line.ready):
                await self._check_held(held)
            self._fill()

    async def _check_held(self, held: Held) -> None:
        """The machine is replaced when it does not answer. It stays ready meanwhile: a taker checks it as well."""
        trouble = await held.find_trouble(CHECK_LIMIT_S) if held in self._line.ready else None
        if trouble is not None and held in self._line.ready:
            self._line.ready.remove(held)
            self._announce()
            self._discard(held, "unhealthy", trouble)

    def _drop(self, reason_of: Callable[[Held], str | None]) -> None:
        for held in list(self._line.ready):
            if (reason := reason_of(held)) is not None:
                self._line.ready.remove(held)
                self._announce()
                self._discard(held, reason)

    def _drop_surplus(self) -> None:
        """One machine is gone where more are ready than are needed, the one that has been for longest."""
        if len(self._line.ready) > self._demand.size:
            oldest = self._line.ready[0]
            self._drop(lambda held: "surplus" if held is oldest else None)

    def _discard(self, held: Held, reason: str, detail: str = "") -> None:
        self._line.leaving.discard(held)
        if detail:
            vm_id = held.base_vm.identity.vm_id
            said = about("pool.replaced", vm_id=vm_id, template=self.kind.template)
            _log.warning("%s: %s is replaced, it is %s: %s", self.kind.name, vm_id, reason, detail, extra=said)
        self._discards.end(held, reason)
        self._fill()
