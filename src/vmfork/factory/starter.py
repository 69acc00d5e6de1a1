"""Starts machines of a base for a pool, a few at once, and goes on after failures."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from vmfork.errors import NoRoom, TemplateError
from vmfork.factory.held import Held
from vmfork.journal import about, code_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from vmfork.factory.kind import Base
    from vmfork.factory.line import Line

_log = logging.getLogger(__name__)

# Machines started at once: each keeps a core busy while it starts, and callers need one too.
CONCURRENCY = 2
# Between two failures of the base, doubled each time up to the last.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 30.0
# Where the host has no room, nothing failed, and a look costs it next to nothing.
ROOM_PAUSE_S = 2.0
PARK_LIMIT_S = 60.0


class Starter:
    """Owner of the starts under way. A machine that is up goes to `on_ready`, and is not the starter's any more.

    `make_s` is what the last one took, in seconds.

    A start that fails is tried again after a pause that doubles; `on_failure` is called first. One that the host has no
    room for is not counted as failed: it waits, and `last_error` says for what. Where the template of
    the base is gone or does not fit, `rebuild` makes it again.
    """

    def __init__(
        self,
        base: Base,
        line: Line,
        *,
        concurrency: int,
        rebuild: Callable[[], Awaitable[None]] | None,
        on_ready: Callable[[Held], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.failed = 0
        self.last_error = ""
        self.make_s = 0.0
        self._base = base
        self._line = line
        self._rebuild = rebuild
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause_s = 0.0
        self._closed = False

    @property
    def count(self) -> int:
        """Starts under way, pauses included."""
        return len(self._tasks)

    @property
    def is_failing(self) -> bool:
        """Whether the last start failed."""
        return self._pause_s > 0

    def start(self) -> None:
        """One more start is under way."""
        task = asyncio.create_task(self._run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> Iterable[asyncio.Task[None]]:
        """The starts are being broken off. They are over when these tasks are done."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        return (*self._tasks,)

    async def _run(self) -> None:
        async with self._slots:
            while not self._closed:
                await asyncio.sleep(self._pause_s)
                begun = time.monotonic()
                try:
                    held = await self._make()
                except Exception as error:  # noqa: BLE001 - whatever it is, the pool goes on and says so
                    self._note_failure(error)
                    continue
                self._pause_s, self.make_s = 0.0, time.monotonic() - begun
                task = asyncio.current_task()
                assert task is not None
                # This start is over before the offer: a caller may take the machine at once and begin the next one.
                self._tasks.discard(task)
                if self._closed:
                    await held.base_vm.aclose()
                else:
                    self._on_ready(held)
                return

    async def _make(self) -> Held:
        await self._renew()
        # If the template is replaced meanwhile, the machine may be of either generation. It passes for the old one, and
        # is replaced as well.
        generation = self._base.kind.generation
        held = Held(await self._base.get_base_vm(), generation)
        try:
            if self._line.is_awaited:
                await held.base_vm.wait_up(timeout_s=PARK_LIMIT_S)
            # Without a wait in between it is either offered to a caller, or parked.
            if not self._line.is_awaited:
                await held.base_vm.park(timeout_s=PARK_LIMIT_S)
                held.parked = True
        except BaseException:
            await held.base_vm.aclose()
            raise
        return held

    async def _renew(self) -> None:
        """The base gives machines of today. Its template was made again, when it had to be and we may."""
        try:
            await self._base.refresh()
        except TemplateError as error:
            if self._rebuild is None:
                raise
            said = self._about("template.rebuilding", error)
            _log.warning("%s is built again: %s", self._base.kind.name, error, extra=said)
            await self._rebuild()

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, NoRoom):
            self._note_full(error)
        else:
            self.failed += 1
            self._pause_s = min(LAST_PAUSE_S, max(FIRST_PAUSE_S, self._pause_s * 2))
            told = "%s: a start failed, next one in %.1f s: %s"
            said = self._about("pool.start-failed", error)
            _log.warning(told, self._base.kind.name, self._pause_s, error, extra=said)
        self.last_error = str(error)
        self._on_failure()

    def _about(self, event: str, error: Exception) -> dict[str, Any]:
        return about(event, template=self._base.kind.template, error=code_of(error))

    def _note_full(self, error: NoRoom) -> None:
        if self._pause_s != ROOM_PAUSE_S:  # once, not at each look
            said = self._about("pool.waits", error)
            _log.warning("%s: waits for room: %s", self._base.kind.name, error, extra=said)
        self._pause_s = ROOM_PAUSE_S
