"""Keeps machines ready over any other factory: started, exercised, paused, and nobody's until they are asked for."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from vmfork.errors import Closed, ConfigError, DeadlineExceeded, VMForkError
from vmfork.host import facts
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmfork.factory.kind import Base, Kind
    from vmfork.machine.base import BaseVM

_log = logging.getLogger(__name__)

# Machines started at once: each keeps a core busy while it starts, and callers need one too.
CONCURRENCY = 2
# Between two failures of the base, doubled each time up to the last.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 30.0
CHECK_INTERVAL_S = 5.0
# A machine that is being made slows the one that was just taken: with nobody waiting, the next is begun after this.
REFILL_DELAY_S = 0.1
# A machine that stands still answers within milliseconds, or not at all.
CHECK_LIMIT_S = 1.0
# Also for a caller with less time than that: one who comes late must not make a machine pass for dead.
LEAST_CHECK_LIMIT_S = 0.25
PARK_LIMIT_S = 60.0
DEFAULT_TTL_S = 3600.0

# What a parked fork costs beyond what it shares: QEMU with its translated code, and the pages it wrote. Measured 30 MiB
# with 256 MiB of RAM; twice that once it is used.
PARKED_FORK_MIB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedVM:
    """One machine that is ready. `age_s`: seconds since it was."""

    id: str
    pid: int
    cpus: int
    memory_mib: int
    age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStatus:
    """What a cache holds now, and what it did since it was opened.

    `given`: machines handed out; `hits` of them at once, `misses` after waiting. `failed`: starts that failed, with
    `last_error` the last. `dropped`: machines that were not handed out, by reason (`expired`, `unhealthy`, `replaced`).
    `waiting`: callers that wait now.
    """

    size: int = 0
    refilling: int = 0
    waiting: int = 0
    given: int = 0
    hits: int = 0
    misses: int = 0
    failed: int = 0
    last_error: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    closed: bool = False
    vms: tuple[CachedVM, ...] = ()

    @property
    def ready(self) -> int:
        return len(self.vms)


@dataclass(slots=True, eq=False)
class _Held:
    base_vm: BaseVM
    generation: str
    parked: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.since


class CacheFactory:
    """Owner of `size` parked machines of `base`, and of `base` itself.

    A start that fails is tried again after a pause that doubles; a machine that died, hangs, is older than `ttl_s`
    seconds or of another kind than `base` gives now is replaced. Use `open`; `aclose()` ends all of it.

    Each machine is in one place at a time:
    ```
    starting -> ready -> leaving -> the caller's
       |          |         |-> ready again (the caller was cancelled), if it is parked
       +----------+---------+-> ending
    ```
    Callers that wait stand in a queue, first come, first served; while there is one, nothing is ready. What is made for
    them is not exercised and parked first: that pays when nobody waits, and costs what it saves when somebody does.
    """

    def __init__(self, base: Base, size: int, *, ttl_s: float, concurrency: int, check_interval_s: float) -> None:
        self._base = base
        self._size = size
        self._ttl_s = ttl_s
        self._check_interval_s = check_interval_s
        self._slots = asyncio.Semaphore(concurrency)
        self._ready: deque[_Held] = deque()
        self._queue: deque[asyncio.Future[_Held]] = deque()
        self._leaving: set[_Held] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._tending: asyncio.Task[None] | None = None
        self._refilling: asyncio.TimerHandle | None = None
        self._filled = asyncio.Event()
        self._pause_s = 0.0
        self._closed = False
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._last_error = ""

    @classmethod
    async def open(
        cls,
        base: Base,
        size: int,
        *,
        ttl_s: float = DEFAULT_TTL_S,
        concurrency: int = CONCURRENCY,
        check_interval_s: float = CHECK_INTERVAL_S,
    ) -> Self:
        """A cache that begins to fill. `ConfigError` for a size the host's memory does not allow."""
        check_size(size, base.kind)
        cache = cls(base, size, ttl_s=ttl_s, concurrency=concurrency, check_interval_s=check_interval_s)
        cache._fill()
        cache._tending = asyncio.create_task(cache._tend())
        return cache

    @property
    def kind(self) -> Kind:
        kind = self._base.kind
        return replace(kind, name=f"cache of {kind.name}")

    @property
    def is_failing(self) -> bool:
        """Whether the last start failed."""
        return self._pause_s > 0

    async def refresh(self) -> None:
        """Machines of another kind than the base gives now are gone. After an error of the base, all of them are."""
        try:
            await self._base.refresh()
        except VMForkError:
            self._drop(lambda _: "replaced")
            raise
        self._drop(lambda held: "replaced" if held.generation != self._base.kind.generation else None)

    async def wait_full(self, *, timeout_s: float | None = None) -> None:
        """All `size` machines are ready. `DeadlineExceeded`, `Closed`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._closed and len(self._ready) < self._size:
                    self._filled.clear()
                    await self._filled.wait()
        except TimeoutError:
            raise self._late(f"filling the {self.kind.name}", timeout_s) from None
        self._check_open()

    async def get_base_vm(self, *, timeout_s: float | None = None) -> BaseVM:
        """A parked machine that answered just now. Waits for one, `timeout_s` seconds at most (`None`: for ever).

        `DeadlineExceeded` tells the last failed start, if there was one. `Closed` when the cache is, also for those who
        wait. Cancelled, the machine stays in the cache.
        """
        self._check_open()
        await self.refresh()
        end, waited = math.inf if timeout_s is None else time.monotonic() + timeout_s, False
        while True:
            waited |= not self._ready
            held = await self._take(end, timeout_s)
            if await self._is_healthy(held, end):
                self._leaving.discard(held)
                self._counts["misses" if waited else "hits"] += 1
                return held.base_vm

    def status(self) -> CacheStatus:
        """What it holds and did."""
        return CacheStatus(
            size=self._size,
            refilling=len(self._starting),
            waiting=len(self._queue),
            given=self._counts["hits"] + self._counts["misses"],
            hits=self._counts["hits"],
            misses=self._counts["misses"],
            failed=self._counts["failed"],
            last_error=self._last_error,
            dropped=dict(self._dropped),
            closed=self._closed,
            vms=tuple(_describe(held) for held in self._ready),
        )

    async def aclose(self) -> None:
        """Who waits got `Closed`, every machine that is held is gone, and the base is closed.

        Cancelled, the machines still end.
        """
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
        while self._queue:
            if not (place := self._queue.popleft()).done():
                place.set_exception(Closed(self.kind.name))
        self._filled.set()
        tasks = {*self._starting, *([self._tending] if self._tending else [])}
        for task in tasks:
            task.cancel()
        for held in (*self._ready, *self._leaving):
            self._end(held)
        self._ready.clear()
        while pending := {task for task in (*tasks, *self._ending) if not task.done()}:
            await asyncio.wait(pending)
        await self._base.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _take(self, end: float, timeout_s: float | None) -> _Held:
        self._check_open()
        # Without a wait there is no point at which a cancellation could lose what was taken.
        if self._ready:
            held = self._ready.popleft()
            self._leaving.add(held)
            self._fill_soon()
            return held
        place: asyncio.Future[_Held] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._fill()
        try:
            async with asyncio.timeout(None if end == math.inf else max(0.0, end - time.monotonic())):
                return await place
        except TimeoutError:
            if _has_result(place):
                return place.result()  # it came with the last tick
            raise self._late(f"waiting for a machine of the {self.kind.name}", timeout_s) from None
        except asyncio.CancelledError:
            if _has_result(place):
                self._put_back(place.result())
            raise
        finally:
            with suppress(ValueError):
                self._queue.remove(place)

    def _offer(self, held: _Held, *, first: bool = False) -> None:
        """It is the first waiting caller's, or else ready."""
        while self._queue:
            if not (place := self._queue.popleft()).done():
                self._leaving.add(held)
                place.set_result(held)
                self._fill_soon()
                return
        if first:
            self._ready.appendleft(held)
        else:
            self._ready.append(held)
        if len(self._ready) >= self._size:
            self._filled.set()

    def _put_back(self, held: _Held) -> None:
        self._leaving.discard(held)
        if self._closed:
            return
        if held.parked:
            self._offer(held, first=True)
        else:
            self._end(held)
            self._fill()

    def _fill_soon(self) -> None:
        if self._queue:
            self._fill()
        elif self._refilling is None and not self._closed:
            self._refilling = asyncio.get_running_loop().call_later(REFILL_DELAY_S, self._refill)

    def _refill(self) -> None:
        self._refilling = None
        self._fill()

    def _late(self, what: str, timeout_s: float | None) -> DeadlineExceeded:
        hint = f"the last start failed: {self._last_error}" if self._last_error else ""
        return DeadlineExceeded(what, timeout_s or 0.0, hint=hint)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(self.kind.name)

    async def _is_healthy(self, held: _Held, end: float) -> bool:
        """Whether it may be handed out; it is ended otherwise. `Closed` when the cache was closed meanwhile."""
        limit_s = min(CHECK_LIMIT_S, max(LEAST_CHECK_LIMIT_S, end - time.monotonic()))
        try:
            # One that was not parked answered when it was given to this caller.
            if (trouble := await self._find_trouble(held, limit_s) if held.parked else None) is None:
                if held.generation == self._base.kind.generation:
                    self._check_open()
                    return True
                self._discard(held, "replaced")
            else:
                self._check_open()
                self._discard(held, "unhealthy", trouble)
        except asyncio.CancelledError:
            self._put_back(held)
            raise
        return False

    async def _find_trouble(self, held: _Held, limit_s: float) -> str | None:
        """What keeps the machine from answering within `limit_s`, or `None` when it did."""
        try:
            async with asyncio.timeout(2 * limit_s):
                await held.base_vm.check(timeout_s=limit_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, this machine is not given to anybody
            return str(error) or type(error).__name__
        return None

    def _fill(self) -> None:
        """As many starts are under way as machines are missing."""
        while not self._closed and len(self._ready) + len(self._starting) < self._size:
            task = asyncio.create_task(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start_one(self) -> None:
        async with self._slots:
            while not self._closed:
                await asyncio.sleep(self._pause_s)
                try:
                    held = await self._make()
                except Exception as error:  # noqa: BLE001 - whatever it is, the pool goes on and says so
                    self._note_failure(error)
                    continue
                self._pause_s = 0.0
                task = asyncio.current_task()
                assert task is not None
                self._starting.discard(task)
                if self._closed:
                    await held.base_vm.aclose()
                else:
                    self._offer(held)
                return

    async def _make(self) -> _Held:
        await self._base.refresh()
        # Replaced while it is made, it may be of either generation: it passes for the old one, and is replaced as well.
        generation = self._base.kind.generation
        held = _Held(await self._base.get_base_vm(), generation)
        try:
            if self._is_awaited():
                await held.base_vm.wait_up(timeout_s=PARK_LIMIT_S)
            # Without a wait in between it is either offered to somebody, or parked.
            if not self._is_awaited():
                await held.base_vm.park(timeout_s=PARK_LIMIT_S)
                held.parked = True
        except BaseException:
            await held.base_vm.aclose()
            raise
        return held

    def _is_awaited(self) -> bool:
        return any(not place.done() for place in self._queue)

    def _note_failure(self, error: Exception) -> None:
        self._counts["failed"] += 1
        self._last_error = str(error)
        self._pause_s = min(LAST_PAUSE_S, max(FIRST_PAUSE_S, self._pause_s * 2))
        _log.warning("%s: a start failed, next one in %.1f s: %s", self.kind.name, self._pause_s, error)

    async def _tend(self) -> None:
        """From time to time: what is too old, or does not answer, is replaced."""
        while True:
            await asyncio.sleep(self._check_interval_s)
            self._drop(lambda held: "expired" if held.age_s > self._ttl_s else None)
            try:
                await self.refresh()
            except VMForkError:
                pass  # a template that is gone shows when the next machine is started
            except Exception:  # noqa: BLE001 - the machines it holds are to be looked at all the same
                _log.exception("%s: what it is made from could not be looked at", self.kind.name)
            for held in list(self._ready):
                await self._check_held(held)
            self._fill()

    async def _check_held(self, held: _Held) -> None:
        """Asked where it stands, so that it can be taken meanwhile; whoever takes it asks again."""
        trouble = await self._find_trouble(held, CHECK_LIMIT_S) if held in self._ready else None
        if trouble is not None and held in self._ready:
            self._ready.remove(held)
            self._discard(held, "unhealthy", trouble)

    def _drop(self, reason_of: Callable[[_Held], str | None]) -> None:
        for held in list(self._ready):
            if (reason := reason_of(held)) is not None:
                self._ready.remove(held)
                self._discard(held, reason)

    def _discard(self, held: _Held, reason: str, detail: str = "") -> None:
        """It ends in the background: who takes a machine does not wait for the end of another."""
        self._dropped[reason] += 1
        self._leaving.discard(held)
        if detail:
            _log.warning(
                "%s: %s is replaced, it is %s: %s", self.kind.name, held.base_vm.identity.vm_id, reason, detail
            )
        self._end(held)
        self._fill()

    def _end(self, held: _Held) -> None:
        task = asyncio.create_task(held.base_vm.aclose())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _has_result(place: asyncio.Future[_Held]) -> bool:
    return place.done() and not place.cancelled() and place.exception() is None


def check_size(size: int, kind: Kind) -> None:
    """Raises `ConfigError`, with the arithmetic, when the host has no memory for `size` parked machines.

    Machines that share a template's memory are counted with what they have of their own, others with all of it.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError("factory.cache", size, f"{size!r} is not a number of machines", hint="give 1 or more")
    each_mib = PARKED_FORK_MIB + (0 if kind.shares_memory else kind.hardware.memory_mib)
    available_mib = facts.available_memory_bytes() // MIB
    if size * each_mib > available_mib:
        raise ConfigError(
            "factory.cache",
            size,
            f"{size} machines of {format_mib(each_mib)} each need {format_mib(size * each_mib)}, "
            f"the host has {format_mib(available_mib)}",
            hint=f"give at most {available_mib // each_mib}",
        )


def _describe(held: _Held) -> CachedVM:
    base_vm = held.base_vm
    return CachedVM(
        id=base_vm.identity.vm_id,
        pid=base_vm.pid,
        cpus=base_vm.hardware.cpus,
        memory_mib=base_vm.hardware.memory_mib,
        age_s=round(held.age_s, 3),
    )
