"""The calls of `vmfork.cache.v1`, under the names that cache.proto gives them: they only translate."""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from vmfork.errors import TemplateStale
from vmfork.records import write_record
from vmfork.rpc import cache_pb2 as pb
from vmfork.rpc.client import GRACE_S
from vmfork.rpc.faults import to_status
from vmfork.rpc.status import VERSION as STATUS_VERSION
from vmfork.rpc.status import Phase
from vmfork.service.cache.metrics import REPORTED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vmfork.factory.cache import CacheFactory
    from vmfork.factory.kind import Kind
    from vmfork.machine.base import BaseVM
    from vmfork.rpc.status import MachineStatus
    from vmfork.service.cache.state import ServerState

CONFIG_VERSION = 1

_PHASES = {
    Phase.STARTING: pb.StatusReply.STATE_STARTING,
    Phase.SERVING: pb.StatusReply.STATE_SERVING,
    Phase.DEGRADED: pb.StatusReply.STATE_DEGRADED,
    Phase.DRAINING: pb.StatusReply.STATE_DRAINING,
}


class Calls:
    """What gRPC calls. `quit` asks the server to end."""

    def __init__(self, state: ServerState, quit: Callable[[], None]) -> None:  # noqa: A002 - the call's name
        self._state = state
        self._quit = quit

    async def Config(self, _request: pb.ConfigRequest, context: Any) -> pb.ConfigReply:  # noqa: N802
        async with _answered(context):
            first, *others = (await self._state.get_pools(_limit_of(context))).kinds
            reply = self._describe(first)
            reply.others.extend(self._describe(kind) for kind in others)
            return reply
        raise AssertionError

    def _describe(self, kind: Kind) -> pb.ConfigReply:
        return pb.ConfigReply(
            config_version=CONFIG_VERSION,
            config=write_record(kind.to_config(self._state.config)),
            traits=dict(kind.traits),
            cpus=kind.hardware.cpus,
            memory_mib=kind.hardware.memory_mib,
            max_cpus=kind.hardware.max_cpus,
            max_memory_mib=kind.hardware.max_memory_mib,
            server_version=self._state.version,
            hardware=write_record(kind.hardware),
            name=kind.name,
            fingerprint=kind.digest,
            template=kind.template,
            warmed=kind.is_warmed,
            recipe=kind.recipe,
        )

    async def GetBaseVM(self, request: pb.GetBaseVMRequest, context: Any) -> pb.GetBaseVMReply:  # noqa: N802
        self._state.given.watch_current()
        async with _answered(context):
            limit_s = _limit_of(context)
            begun = time.monotonic()
            pool = (await self._state.get_pools(limit_s)).find(request.template)
            await pool.refresh()
            _check_kind(pool, request)
            hit = pool.status().ready > 0
            base = await pool.get_base_vm(timeout_s=limit_s)
            try:
                _check_kind(pool, request)  # what it holds may have been replaced while this was waited for
            except TemplateStale:
                await base.aclose()
                raise
            self._observe(base, waited_s=time.monotonic() - begun)
            return await self._give(base, request, context, hit=hit)
        raise AssertionError

    async def Status(self, _request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802
        async with _answered(context):
            status = await self._state.describe()
            return pb.StatusReply(
                pid=status.pid,
                server_version=status.version,
                state=_PHASES[self._state.phase],
                pool_size=status.pool.size,
                pool_ready=status.pool.ready,
                vms=[_cached_vm(vm) for vm in status.vms],
                live=[_cached_vm(vm) for vm in status.live],
                document_version=STATUS_VERSION,
                document=status.to_json(),
            )
        raise AssertionError

    async def Quit(self, _request: pb.QuitRequest, _context: Any) -> pb.QuitReply:  # noqa: N802
        self._quit()
        return pb.QuitReply(pid=os.getpid())

    async def Report(self, request: pb.ReportRequest, _context: Any) -> pb.ReportReply:  # noqa: N802
        for phase, seconds in request.phases.items():
            if phase in REPORTED:
                self._state.metrics.observe(phase, seconds)
        if request.fallback:
            self._state.metrics.fallbacks.count(request.fallback)
        return pb.ReportReply()

    async def _give(self, base: BaseVM, request: pb.GetBaseVMRequest, context: Any, *, hit: bool) -> pb.GetBaseVMReply:
        """The answer that hands `base` over. When the client goes before it has the answer, the machine ends."""
        given = self._state.given
        handle = await given.give(base, ttl_s=request.ttl_s, client=request.client)
        context.add_done_callback(lambda context: given.take_back(base, handle) if context.cancelled() else None)
        return pb.GetBaseVMReply(
            handle_version=handle.version,
            handle=handle.to_json(),
            vm_id=handle.id,
            pid=handle.pid,
            cpus=base.hardware.cpus,
            memory_mib=base.hardware.memory_mib,
            hit=hit,
        )

    def _observe(self, base: BaseVM, *, waited_s: float) -> None:
        metrics = self._state.metrics
        metrics.observe("wait", waited_s)
        metrics.observe("spawn", base.spawn_s)
        metrics.observe("load", base.answer_s)


@asynccontextmanager
async def _answered(context: Any) -> AsyncIterator[None]:
    """What is raised inside is the call's answer."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - the caller is told whatever it is; the server goes on
        status, message, trailers = to_status(error)
        await context.abort(status, message, trailers)


def _check_kind(pool: CacheFactory, request: pb.GetBaseVMRequest) -> None:
    if request.fingerprint and request.fingerprint != (now := pool.kind.digest):
        raise TemplateStale(pool.kind.name, "fingerprint", now, request.fingerprint)


def _limit_of(context: Any) -> float | None:
    """Seconds to find an answer in, so that there is time left to send it; `None` for as long as it takes."""
    remaining = context.time_remaining()
    return None if remaining is None else max(remaining - GRACE_S, remaining / 2)


def _cached_vm(vm: MachineStatus) -> pb.CachedVM:
    return pb.CachedVM(id=vm.id, pid=vm.pid, cpus=vm.cpus, memory_mib=vm.memory_mib, age_s=vm.age_s)
