"""The VM cache server: what the calls of `vmfork.cache.v1` do, and its life from claim to drain.

```
starting    the endpoint is ours and answers; takes wait for the pool          health: NOT_SERVING
serving     a machine is ready, or was: takes are served                       health: SERVING
draining    takes, waiting ones too, get Closed; held machines are ended       health: NOT_SERVING
```
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vmfork.errors import Closed, DeadlineExceeded, TemplateStale, VMForkError
from vmfork.host.process import ProcessIdentity
from vmfork.machine.folder import sweep_vms
from vmfork.rpc import cache_pb2 as pb
from vmfork.rpc.cache_pb2_grpc import add_CacheServicer_to_server
from vmfork.rpc.client import GRACE_S
from vmfork.rpc.faults import to_status
from vmfork.service.front import Claim, Front
from vmfork.service.metrics import REPORTED, Metrics, Snapshot, read_memory_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from vmfork.config import VMConfig
    from vmfork.factory.cache import CachedVM, CacheFactory, CacheStatus
    from vmfork.machine.base import BaseVM

SERVICE = pb.DESCRIPTOR.services_by_name["Cache"].full_name
CONFIG_VERSION = 1
DOCUMENT_VERSION = 1

# So long a pool may take to be full before one that serves all the same counts as ready.
_FILL_PATIENCE_S = 1.0
_TTL_S = 10.0
# A taker ends its machines itself; what one that was killed left is a folder with a log.
SWEEP_INTERVAL_S = 10.0
_TTL_LIMIT_S = 600.0
# A take that has its machine needs so long at most to hand it over.
_HAND_OVER_LIMIT_S = 10.0
# What was answered is sent within this; who only watches (health) is cut off after it.
_LAST_WORDS_S = 0.5

_STATES = {
    "starting": pb.StatusReply.STATE_STARTING,
    "serving": pb.StatusReply.STATE_SERVING,
    "draining": pb.StatusReply.STATE_DRAINING,
}


@dataclass(frozen=True, slots=True)
class GivenVM:
    """A machine that was given out: which process it is, to whom it went, when (monotonic)."""

    id: str
    process: ProcessIdentity
    cpus: int
    memory_mib: int
    client: str
    given_at: float

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.given_at


class CacheServer:
    """Owner of the endpoint while `run` runs. Machines given out are their takers' and outlive it."""

    def __init__(
        self, endpoint: Path, config: VMConfig, *, version: str, template: str = "", vms: Path | None = None
    ) -> None:
        self.endpoint = endpoint
        self.state = "starting"
        self.metrics = Metrics()
        self.metrics_address = ""
        self._config = config
        self._version = version
        self._template = template
        self._vms = vms
        self._started_at = datetime.now(UTC)
        self._quitting = asyncio.Event()
        self._front: Front | None = None
        self._health = health.aio.HealthServicer()
        self._pool: CacheFactory | None = None
        self._pool_opened = asyncio.Event()
        self._given: dict[str, GivenVM] = {}
        self._handing: set[asyncio.Task[Any]] = set()

    def quit(self) -> None:
        """The server drains and ends; what it told is still told. Asking again changes nothing."""
        self._quitting.set()

    async def run(
        self,
        open_pool: Callable[[], Awaitable[CacheFactory]],
        *,
        on_change: Callable[[str], None] = lambda _state: None,
    ) -> None:
        """It served until it was told to quit, and drained. Nothing is left at the endpoint, nor of the pool.

        `open_pool` makes the pool while the endpoint answers already; `on_change` is told each state. `StoreBusy` when
        another server has the endpoint; else errors are those of `open_pool`. Cancelled: it ends without waiting.
        """
        async with AsyncExitStack() as stack:
            claim = Claim.take(self.endpoint)
            stack.callback(claim.close)
            server = await self._start_grpc(claim)
            stack.push_async_callback(server.stop, None)
            self._front = Front(claim)
            stack.push_async_callback(self._front.aclose)
            await self._front.open()
            await self._serve(open_pool, on_change, stack)
            await self._change("draining", on_change)
            if self._pool is not None:
                await self._pool.aclose()
            await self._finish_handing()
            await server.stop(_LAST_WORDS_S)

    async def _serve(
        self, open_pool: Callable[[], Awaitable[CacheFactory]], on_change: Callable[[str], None], stack: AsyncExitStack
    ) -> None:
        await self._change("starting", on_change)
        self._pool = pool = await self._unless_quit(open_pool())
        self._pool_opened.set()
        if pool is not None:
            stack.push_async_callback(pool.aclose)
            await self._unless_quit(_wait_ready(pool))
        if not self._quitting.is_set():
            await self._change("serving", on_change)
            await self._unless_quit(self._sweep())

    async def _sweep(self) -> None:
        """From time to time: what machines left behind whose takers were killed. Never ends."""
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            before = len(self._given)
            if self._vms is not None and len(self._find_live()) < before:
                await asyncio.to_thread(sweep_vms, self._vms)

    async def _unless_quit(self, work: Awaitable[Any]) -> Any:
        """What `work` gave, or `None` when it was cancelled because the server is to end."""
        task = asyncio.ensure_future(work)
        quitting = asyncio.ensure_future(self._quitting.wait())
        try:
            await asyncio.wait({task, quitting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            quitting.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    async def _start_grpc(self, claim: Claim) -> grpc.aio.Server:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_CacheServicer_to_server(self, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        await self._tell_health(serving=False)
        server.add_insecure_port(f"unix:{claim.inner}")
        await server.start()
        return server

    async def _change(self, state: str, on_change: Callable[[str], None]) -> None:
        self.state = state
        await self._tell_health(serving=state == "serving")
        if state == "draining":
            self._pool_opened.set()  # who waits for a pool learns that there is none any more
        on_change(state)

    async def _tell_health(self, *, serving: bool) -> None:
        told = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, told.SERVING if serving else told.NOT_SERVING)

    async def _finish_handing(self) -> None:
        """Takes that have their answer, or their refusal, gave it; machines whose takers went are ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_HAND_OVER_LIMIT_S):
                while self._handing:
                    await asyncio.wait({*self._handing})

    # The calls of cache.proto, under the names it gives them.

    async def Config(self, _request: pb.ConfigRequest, context: Any) -> pb.ConfigReply:  # noqa: N802
        async with _answered(context):
            pool = await self._get_pool(_limit_of(context))
            return pb.ConfigReply(
                config_version=CONFIG_VERSION,
                config=json.dumps(asdict(self._config)).encode(),
                traits=dict(pool.kind.traits),
                cpus=pool.kind.hardware.cpus,
                memory_mib=pool.kind.hardware.memory_mib,
                max_cpus=pool.kind.hardware.max_cpus,
                max_memory_mib=pool.kind.hardware.max_memory_mib,
                server_version=self._version,
                hardware=json.dumps(asdict(pool.kind.hardware)).encode(),
                name=pool.kind.name,
                fingerprint=pool.kind.digest,
            )
        raise AssertionError

    async def GetBaseVM(self, request: pb.GetBaseVMRequest, context: Any) -> pb.GetBaseVMReply:  # noqa: N802
        task = asyncio.current_task()
        assert task is not None
        self._handing.add(task)
        task.add_done_callback(self._handing.discard)
        async with _answered(context):
            limit = _limit_of(context)
            begun = time.monotonic()
            pool = await self._get_pool(limit)
            await pool.refresh()
            _check_kind(pool, request)
            hit = pool.status().ready > 0
            base = await pool.get_base_vm(timeout_s=limit)
            try:
                _check_kind(pool, request)  # what it holds may have been replaced while this was waited for
            except TemplateStale:
                await base.aclose()
                raise
            self._count_take(base, waited_s=time.monotonic() - begun)
            return await self._give(base, request, context, hit=hit)
        raise AssertionError

    async def Status(self, _request: pb.StatusRequest, context: Any) -> pb.StatusReply:  # noqa: N802
        async with _answered(context):
            document = await self.describe()
            return pb.StatusReply(
                pid=os.getpid(),
                server_version=self._version,
                state=_STATES[self.state],
                pool_size=document["pool"]["size"],
                pool_ready=document["pool"]["ready"],
                vms=[_cached_vm(vm) for vm in document["vms"]],
                live=[_cached_vm(vm) for vm in document["live"]],
                document_version=DOCUMENT_VERSION,
                document=json.dumps(document).encode(),
            )
        raise AssertionError

    async def Quit(self, _request: pb.QuitRequest, _context: Any) -> pb.QuitReply:  # noqa: N802
        self.quit()
        return pb.QuitReply(pid=os.getpid())

    async def Report(self, request: pb.ReportRequest, _context: Any) -> pb.ReportReply:  # noqa: N802
        for phase, seconds in request.phases.items():
            if phase in REPORTED:
                self.metrics.observe(phase, seconds)
        if request.fallback:
            self.metrics.fall_back(request.fallback)
        return pb.ReportReply()

    async def describe(self) -> dict[str, Any]:
        """All that is to be told of the server, as `vmfork factory status --json` prints it."""
        held, live = await self._refresh()
        pool = self._pool
        return {
            "on": self.state == "serving",
            "pid": os.getpid(),
            "version": self._version,
            "state": self.state,
            "started_at": self._started_at.isoformat(timespec="milliseconds"),
            "endpoint": str(self.endpoint),
            "metrics_address": self.metrics_address,
            "template": self._template,
            "cpus": pool.kind.hardware.cpus if pool else self._config.cpus,
            "memory_mib": pool.kind.hardware.memory_mib if pool else self._config.memory_mib,
            "traits": dict(pool.kind.traits) if pool else {},
            "fingerprint": pool.kind.digest if pool else "",
            "pool": _plain_status(pool.status()) if pool else {"size": 0, "ready": 0},
            "vms": [_plain_vm(vm) for vm in held],
            "live": [{**_plain_vm(vm), "client": vm.client} for vm in live],
            "metrics": self.metrics.numbers(),
        }

    async def render_metrics(self) -> tuple[str, bytes]:
        """Content type and text for Prometheus, of this moment."""
        await self._refresh()
        return self.metrics.render()

    async def _refresh(self) -> tuple[Sequence[CachedVM], Sequence[GivenVM]]:
        """The metrics tell this moment; the machines held, and those given out that still run."""
        before = self._pool.status() if self._pool else None
        live = self._find_live()
        pids = [*(vm.pid for vm in (before.vms if before else ())), *(vm.pid for vm in live)]
        shared, private = await read_memory_of(pids)
        # Reading memory took a while: what is told is one moment, that of the end.
        live = self._find_live()
        others = Snapshot(
            live=len(live), refused=self._front.refused if self._front else 0, shared=shared, private=private
        )
        if self._pool is None:
            self.metrics.snapshot = others
            return (), live
        now = self._pool.status()
        self.metrics.snapshot = replace(
            others,
            size=now.size,
            ready=now.ready,
            refilling=now.refilling,
            waiting=now.waiting,
            failed=now.failed,
            given=now.given,
            hits=now.hits,
            misses=now.misses,
            dropped=dict(now.dropped),
        )
        return now.vms, live

    def _find_live(self) -> list[GivenVM]:
        self._given = {vm_id: vm for vm_id, vm in self._given.items() if vm.process.is_alive()}
        return [*self._given.values()]

    async def _get_pool(self, limit_s: float | None) -> CacheFactory:
        try:
            async with asyncio.timeout(limit_s):
                await self._pool_opened.wait()
        except TimeoutError:
            raise DeadlineExceeded("the start of the VM cache server", limit_s or 0.0) from None
        if self._pool is None or self.state == "draining":
            raise Closed("the VM cache server", "it is ending")
        return self._pool

    def _count_take(self, base: BaseVM, *, waited_s: float) -> None:
        self.metrics.observe("wait", waited_s)
        self.metrics.observe("spawn", base.spawn_s)
        self.metrics.observe("load", base.answer_s)

    async def _give(self, base: BaseVM, request: pb.GetBaseVMRequest, context: Any, *, hit: bool) -> pb.GetBaseVMReply:
        """The answer that hands `base` over. Whoever asked and goes before it has it gets nothing, and it is ended."""
        begun = time.monotonic()
        ttl_s = min(request.ttl_s, _TTL_LIMIT_S) if request.ttl_s > 0 else _TTL_S
        detaching = self._start(base.detach(ttl_s=ttl_s))
        try:
            handle = await asyncio.shield(detaching)
        except asyncio.CancelledError:
            self._start(self._take_back(base, detaching))
            raise
        except Exception:
            await base.aclose()
            raise
        self.metrics.observe("hand_over", time.monotonic() - begun)
        given = GivenVM(
            id=handle.id,
            process=ProcessIdentity(handle.pid, handle.start_ticks),
            cpus=base.hardware.cpus,
            memory_mib=base.hardware.memory_mib,
            client=request.client[:64],
            given_at=time.monotonic(),
        )
        self._given[given.id] = given
        context.add_done_callback(
            lambda context: self._start(self._take_back(base, detaching)) if context.cancelled() else None
        )
        return pb.GetBaseVMReply(
            handle_version=handle.version,
            handle=handle.to_json(),
            vm_id=given.id,
            pid=given.pid,
            cpus=given.cpus,
            memory_mib=given.memory_mib,
            hit=hit,
        )

    async def _take_back(self, base: BaseVM, detaching: asyncio.Task[Any]) -> None:
        """The machine whose taker went is gone, unless somebody has it: then it is theirs."""
        self.metrics.taken_back.inc()
        with suppress(VMForkError):
            handle = await detaching
            await (await type(base).attach(handle)).aclose()
            self._given.pop(handle.id, None)
        await base.aclose()

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that is waited for before the server ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._handing.add(task)
        task.add_done_callback(self._handing.discard)
        return task


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


def _plain_status(status: CacheStatus) -> dict[str, Any]:
    names = ("size", "ready", "refilling", "waiting", "given", "hits", "misses", "failed", "last_error")
    return {**{name: getattr(status, name) for name in names}, "dropped": dict(status.dropped)}


async def _wait_ready(pool: CacheFactory) -> None:
    """The pool was filled for the first time, or holds a machine, or gave one, and is not full a while later."""
    while True:
        try:
            await pool.wait_full(timeout_s=_FILL_PATIENCE_S)
        except DeadlineExceeded:
            status = pool.status()
            if not status.ready + status.given:
                continue
        return


def _plain_vm(vm: CachedVM | GivenVM) -> dict[str, Any]:
    return {
        "id": vm.id,
        "pid": vm.pid,
        "cpus": vm.cpus,
        "memory_mib": vm.memory_mib,
        "age_s": round(vm.age_s, 3),
    }


def _cached_vm(vm: Mapping[str, Any]) -> pb.CachedVM:
    return pb.CachedVM(id=vm["id"], pid=vm["pid"], cpus=vm["cpus"], memory_mib=vm["memory_mib"], age_s=vm["age_s"])
