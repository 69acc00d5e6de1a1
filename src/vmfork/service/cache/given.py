"""Machines on their way to a taker, and those given: each once, and taken back when the taker goes before it has it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from vmfork.errors import VMForkError
from vmfork.rpc.status import MachineStatus

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vmfork.host.process import ProcessIdentity
    from vmfork.machine.base import BaseVM
    from vmfork.machine.handle import VMHandle
    from vmfork.service.cache.metrics import Metrics

T = TypeVar("T")

# A machine waits this long for its taker, who may ask for more, up to the limit. An answer arrives within milliseconds.
_TTL_S, _TTL_LIMIT_S = 10.0, 600.0
# A server that ends waits this long for takes that have their machine to hand it over.
_HAND_OVER_LIMIT_S = 10.0
_CLIENT_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenVM:
    """A machine that was given out: which process it is, to whom it went, when (monotonic)."""

    id: str
    process: ProcessIdentity
    cpus: int
    memory_mib: int
    client: str
    given_at: float = field(default_factory=time.monotonic)

    @property
    def status(self) -> MachineStatus:
        return MachineStatus(
            id=self.id,
            pid=self.process.pid,
            cpus=self.cpus,
            memory_mib=self.memory_mib,
            age_s=round(time.monotonic() - self.given_at, 3),
            client=self.client,
        )


class Given:
    """Owner of the hand-overs under way. Machines that were given are their takers'; it only knows of them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._given: dict[str, GivenVM] = {}
        self._working: set[asyncio.Task[Any]] = set()

    def count(self) -> int:
        """Machines given out that have not been found ended."""
        return len(self._given)

    def find_live(self) -> tuple[GivenVM, ...]:
        """The machines given out that still run."""
        self._given = {vm_id: vm for vm_id, vm in self._given.items() if vm.process.is_alive()}
        return tuple(self._given.values())

    async def give(self, base: BaseVM, *, ttl_s: float, client: str) -> VMHandle:
        """`base` waits `ttl_s` seconds (0: ten) for the holder of the handle. After an error or a cancel it ends."""
        begun = time.monotonic()
        detaching = self._start(base.detach(ttl_s=min(ttl_s, _TTL_LIMIT_S) if ttl_s > 0 else _TTL_S))
        try:
            # Shielded: half a hand-over could not be taken back.
            handle = await asyncio.shield(detaching)
        except asyncio.CancelledError:
            self._start(self._take_back_later(base, detaching))
            raise
        except Exception:
            await base.aclose()
            raise
        self._metrics.observe("hand_over", time.monotonic() - begun)
        self._given[handle.id] = GivenVM(
            id=handle.id,
            process=handle.process,
            cpus=base.hardware.cpus,
            memory_mib=base.hardware.memory_mib,
            client=client[:_CLIENT_SIZE],
        )
        return handle

    def take_back(self, base: BaseVM, handle: VMHandle) -> None:
        """The taker went before the answer: its machine ends in the background, unless it was taken over already."""
        self._metrics.taken_back.inc()
        self._start(self._end(base, handle))

    async def _take_back_later(self, base: BaseVM, detaching: asyncio.Task[VMHandle]) -> None:
        self._metrics.taken_back.inc()
        try:
            handle = await detaching
        except VMForkError:
            await base.aclose()
        else:
            await self._end(base, handle)

    async def _end(self, base: BaseVM, handle: VMHandle) -> None:
        with suppress(VMForkError):  # it was taken over, or it has ended
            await (await type(base).attach(handle)).aclose()
            self._given.pop(handle.id, None)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that `finish` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._watch(task)
        return task

    def watch_current(self) -> None:
        """`finish` waits for the task that runs now."""
        task = asyncio.current_task()
        assert task is not None
        self._watch(task)

    def _watch(self, task: asyncio.Task[Any]) -> None:
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    async def finish(self) -> None:
        """Every take was answered or refused, and machines whose takers went have ended, within ten seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_HAND_OVER_LIMIT_S):
                while self._working:
                    await asyncio.wait({*self._working})
