"""What one node does: makes machines of its own store, keeps them, and gives its templates to others.

It knows no engine: whatever carries calls to it calls `serve` and `stream`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

from vmfork.admission.charge import Charge
from vmfork.api.template import Template
from vmfork.api.vm import VM
from vmfork.cluster.claims import Claims
from vmfork.cluster.eviction import Eviction
from vmfork.cluster.placement import Offer, Wanted
from vmfork.cluster.pools import Pools
from vmfork.cluster.terms import LISTED, Held, Machine, Report, digest_of, find_version
from vmfork.cluster.transfer import AT_ONCE, Packed, take_over
from vmfork.config import FactoryConfig, Instance, find_places
from vmfork.errors import (
    ClusterError,
    ConfigError,
    NodeLost,
    NoNode,
    NoRoom,
    StoreBusy,
    TemplateError,
    TemplateNotFound,
    VMForkError,
    VMNotFound,
)
from vmfork.host import facts, kvm
from vmfork.hypervisor.qemu import find_qemu
from vmfork.image import DiskStore
from vmfork.machine.folder import list_charged, list_records
from vmfork.machine.room import charge_for_fork, count_room
from vmfork.machine.verdict import find_failure
from vmfork.owner import Owner
from vmfork.store import TemplateStore
from vmfork.template.removal import list_persisted, locate_persisted
from vmfork.travel.fit import hardware_of
from vmfork.wire.frame import SUPPORTED_PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence

    from vmfork.cluster.terms import Order, Peers
    from vmfork.code.result import CodeResult
    from vmfork.config import Places
    from vmfork.copied import Copied
    from vmfork.machine.event import ProgramEvent
    from vmfork.machine.result import ExecResult
    from vmfork.machine.use import Stats
    from vmfork.wire.message import DirEntry, FileStat

_log = logging.getLogger("vmfork")

# A machine that does not last ends when nothing was heard of its program for so long.
LEASE_S = 30.0
# What was begun to be sent is forgotten when no more of it came for so long: a piece may take its time on a slow line.
_SPOOL_S = 300.0
_LOOK_EVERY_S = 5.0
# Reports come once a second: so long what has ended is told.
_ENDED_S = 5.0
# What room is told in where no template says what a machine is counted with: a default fork's.
_SHARE_MIB, _TASKS = 162, 6
PIECE_BYTES = 4 << 20
# What a node counts since its process began; `fork_seconds` is all that `forks` from templates took together, of which
# those `from_pool` had waited.
COUNTS = ("forks", "forks_failed", "fork_seconds", "from_pool", "programs", "pulls", "sent_bytes")
# The labels by which a node's process finds machines again that outlived the one before it.
_MARK, _KEY = "vmfork-cluster", "vmfork-cluster-key"
# So long a template that comes back from disk is waited for, where others have one of its name.
_REVIVAL_LIMIT_S = 10.0
_REVIVAL_LOOK_S = 0.5
# Between two that come back: whoever wants one of them has a chance to have its own first.
_REVIVAL_PAUSE_S = 0.05


class Node(Owner):
    """Owner of the machines that it has made and that do not last. Its calls are the methods in `CALLS`, by name.

    A machine is asked for by a key: as long as it lives, or is being made, the same key gives the same one.
    """

    CALLS = frozenset({
        "report", "fork", "drop", "renew", "exec", "run_code", "image_argv", "read_file", "write_file", "stat",
        "exists", "is_dir", "list_dir", "remove", "make_dir", "move", "chmod", "chown", "spool", "put", "pause",
        "resume", "ping", "stats", "console_tail", "fork_vm", "close", "pull", "artifact", "layer", "set_draining",
        "claim", "unclaim", "find_key", "keeps",
    })  # fmt: skip
    STREAMS = frozenset({"stream_exec", "get"})

    def __init__(
        self,
        name: str,
        peers: Peers,
        *,
        labels: Mapping[str, str],
        places: Places,
        config: FactoryConfig,
        living: Callable[[], Awaitable[Collection[str]]] | None,
    ) -> None:
        self.name = name
        self._peers = peers
        self._labels = dict(labels)
        self._instance = Instance(places, budget=config.budget)
        self._config = config.vm
        self._pools = Pools(config, places)
        self._packed = Packed(places.home)
        self._eviction = Eviction(name, self._instance, peers, is_sent=self._packed.is_sent)
        self._machines: dict[str, Machine] = {}
        self._vms: dict[str, VM] = {}
        # By machine that does not last: the programs that asked for it. It ends with the last of them.
        self._clients: dict[str, set[str]] = {}
        self._leases: dict[str, float] = {}
        self._asked: dict[str, asyncio.Task[Machine]] = {}
        # By key: the tickets of those who wait for the machine, or have it.
        self._tickets: dict[str, set[str]] = defaultdict(set)
        self._closing: set[str] = set()
        self._reviving: dict[str, asyncio.Task[None]] = {}
        self._pulls: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._pulls_at_once = asyncio.Semaphore(AT_ONCE)
        self._spooled: dict[str, tempfile._TemporaryFileWrapper[bytes]] = {}
        self._claims = Claims()
        self._is_draining = False
        self._has_ended = False
        self._line = asyncio.Lock()
        self._in_line = 0
        # By key, when what was asked for came to an end.
        self._ended: dict[str, float] = {}
        self._counts: dict[str, float] = dict.fromkeys(COUNTS, 0)
        self._watch: asyncio.Task[None] | None = None
        self._bringing: asyncio.Task[None] | None = None
        self._living = living

    @classmethod
    async def open(
        cls,
        name: str,
        peers: Peers,
        *,
        labels: Mapping[str, str],
        places: Places | None = None,
        config: FactoryConfig | None = None,
        living: Callable[[], Awaitable[Collection[str]]] | None = None,
    ) -> Self:
        """The node, with the machines that outlived the process that made them.

        Where it is told which nodes are `living`, by their names, it takes those too that are here of one that is not.
        Templates that its host keeps on disk come back to memory meanwhile.
        Of `config`: its `vm` is as for `Template.open`, templates that come from other nodes keep within its `budget`,
        and `cache` machines of each template that it names are kept ready while that is in force here.
        """
        own = config or FactoryConfig()
        node = cls(name, peers, labels=labels, places=places or find_places(), config=own, living=living)
        await node._find_again()
        node._watch = asyncio.ensure_future(node._end_forgotten())
        node._bringing = asyncio.ensure_future(node._bring_back())
        return node

    async def serve(self, verb: str, *args: Any) -> Any:
        """What the call of that name gives."""
        if verb not in self.CALLS:
            raise ConfigError("verb", verb, f"a node does not know {verb!r}")
        return await getattr(self, verb)(*args)

    async def stream(self, verb: str, *args: Any) -> AsyncGenerator[Any, None]:
        """What the call of that name gives, piece by piece."""
        if verb not in self.STREAMS:
            raise ConfigError("verb", verb, f"a node does not know {verb!r}")
        async with aclosing(getattr(self, verb)(*args)) as pieces:
            async for piece in pieces:
                yield piece

    async def report(self) -> Report:
        """What the node has, and has room for, now."""
        held = await self._list_held()
        before = {*self._machines}  # one that comes meanwhile is none that has ended
        alive = await asyncio.to_thread(lambda: {each.id for each in list_records(self._instance.places.vms)})
        for vm_id in before - alive:
            await self.close(vm_id)
        share_mib = min((each.wanted.share_mib for each in held.values()), default=_SHARE_MIB)
        total, to_give, strained = await asyncio.to_thread(self._read_room, share_mib)
        # Machines that wait give way to whoever asks: their room is to give as well.
        pooled = {name: count for name, count in self._pools.count_ready().items() if count and name in held}
        pooled_mib = sum(count * held[name].wanted.share_mib for name, count in pooled.items())
        offer = Offer(
            name=self.name,
            labels=self._labels,
            emulators=frozenset({(await find_qemu(self._config.qemu)).version}),
            accels=frozenset({"tcg", "kvm"} if await asyncio.to_thread(self._may_run_kvm, held) else {"tcg"}),
            protocols=frozenset(SUPPORTED_PROTOCOLS),
            host_cpu=facts.cpu_name(),
            templates=frozenset(each.wanted.digest for each in held.values()),
            layers=frozenset(layer for each in held.values() for layer in each.wanted.layers),
            total_mib=total,
            to_give_mib=to_give + pooled_mib,
            strained=strained,
            running=len(await asyncio.to_thread(list_charged, self._instance.places.vms)) - sum(pooled.values()),
            pooled={held[name].wanted.digest: count for name, count in pooled.items()},
            waiting=self._in_line,
            load=os.getloadavg()[0] / (os.cpu_count() or 1),
            is_draining=self._is_draining,
        )
        return Report(
            offer=offer,
            version=find_version(),
            held=tuple(held.values()),
            machines=tuple(self._machines.values()),
            asked=tuple(self._asked),
            ended=self._list_ended(),
            counts=dict(self._counts),
        )

    def _may_run_kvm(self, held: Mapping[str, Held]) -> bool:
        """Whether nothing is known that stands against it: the device proves nothing until a guest was tried.

        Where a template of it is, it ran that one's guest, whatever became of others.
        """
        if kvm.find_refusal() is not None:
            return False
        has_run = any(each.wanted.traits.get("accel") == "kvm" for each in held.values())
        return has_run or find_failure(self._instance.places) is None

    async def fork(self, order: Order) -> Machine:
        """The machine of the order's key: made now, or before. On cancel it is made all the same: `drop` it.

        Raises `NoNode` for a new one while the node is drained, and what `Template.fork` raises.
        """
        self._leases[order.client] = time.monotonic() + LEASE_S
        self._tickets[order.key].add(order.ticket)
        while True:
            for machine in self._machines.values():
                if machine.key == order.key:
                    return self._hand_out(machine, order.client)
            task = self._asked.get(order.key) or self._begin_making(order)
            try:
                return self._hand_out(await asyncio.shield(task), order.client)
            except asyncio.CancelledError:
                # Whoever asked before us gave it up as we came: it is made anew, for us.
                if is_called_off() or not task.cancelled() or order.ticket not in self._tickets.get(order.key, ()):
                    raise
                await asyncio.sleep(0)  # it may just have ended: what forgets it comes next

    def _begin_making(self, order: Order) -> asyncio.Task[Machine]:
        """Raises `NoNode` while the node is drained, and `NodeLost` at its end."""
        if self._has_ended or self._is_draining:
            self._tickets.pop(order.key, None)
            if self._has_ended:
                raise NodeLost(self.name, reason="it ends")
            raise NoNode(f"node {self.name} is being drained")
        task = self._asked[order.key] = asyncio.ensure_future(self._make(order))
        task.add_done_callback(lambda _: self._has_made(order.key))
        return task

    def _hand_out(self, machine: Machine, client: str) -> Machine:
        """The machine, which is that program's as well."""
        if machine.id in self._clients:
            self._clients[machine.id].add(client)
        return machine

    def _has_made(self, key: str) -> None:
        task = self._asked.pop(key)
        if task.cancelled():  # nobody waited for it any more; who came since has a ticket
            self._ended[key] = time.monotonic()
        elif task.exception() is not None:
            self._tickets.pop(key, None)
            self._ended[key] = time.monotonic()

    def _list_ended(self) -> tuple[str, ...]:
        """Keys whose machine was made and has ended, or was not made, since the last reports."""
        before = time.monotonic() - _ENDED_S
        self._ended = {key: at for key, at in self._ended.items() if at > before}
        return tuple(self._ended)

    async def drop(self, key: str, ticket: str = "") -> None:
        """Who asked with the ticket wants the machine of that key no more; it is gone, unless another has asked."""
        self._tickets[key].discard(ticket)
        # A key that is a ticket nobody else can ask by. Of others a process that began anew knows not who has asked.
        if self._tickets[key] and key != ticket:
            return
        del self._tickets[key]
        if (task := self._asked.get(key)) is not None:
            task.cancel()
            await asyncio.wait({task})
        if self._tickets.get(key):  # who asked while that ended
            return
        for machine in [*self._machines.values()]:
            if machine.key == key:
                await self.close(machine.id)

    def list_clients(self) -> frozenset[str]:
        """The programs that have machines here which end with them."""
        return frozenset().union(*self._clients.values())

    async def find_key(self, key: str) -> Machine | None:
        """The machine of that key, once it is made where it is being made; `None` where there is none."""
        if (task := self._asked.get(key)) is not None:
            await asyncio.wait({task})
        return next((machine for machine in self._machines.values() if machine.key == key), None)

    async def set_draining(self, is_draining: bool) -> None:
        """Whether no new machine is made here, and none waits. Forgotten when the node's process ends."""
        self._is_draining = is_draining
        if is_draining:
            await self._pools.give_way()

    async def claim(self, key: str, node: str, instead_of: str = "") -> str:
        """The node where the machine of the key is to be, of which this node is the home."""
        return self._claims.claim(key, node, instead_of=instead_of)

    async def unclaim(self, key: str, node: str) -> None:
        """The machine of the key is not on that node any more."""
        self._claims.release(key, node)

    async def renew(self, client: str) -> None:
        """The program lives, and so do its machines."""
        self._leases[client] = time.monotonic() + LEASE_S

    async def exec(self, vm_id: str, argv: Sequence[str], options: Mapping[str, Any]) -> ExecResult:
        self._counts["programs"] += 1
        return await (await self._get(vm_id)).exec(argv, **options)

    async def run_code(self, vm_id: str, code: str, language: str, options: Mapping[str, Any]) -> CodeResult:
        self._counts["programs"] += 1
        return await (await self._get(vm_id)).run_code(code, language, **options)

    async def stream_exec(
        self, vm_id: str, argv: Sequence[str], options: Mapping[str, Any]
    ) -> AsyncIterator[ProgramEvent]:
        self._counts["programs"] += 1
        vm = await self._get(vm_id)
        events = vm.stream(argv, **options)
        assert isinstance(events, AsyncGenerator)  # as guarded, and without, it is one
        async with aclosing(events):
            async for event in events:
                yield event

    async def image_argv(self, vm_id: str, arguments: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        return [*await (await self._get(vm_id)).image_argv(arguments, **options)]

    async def read_file(self, vm_id: str, path: str, options: Mapping[str, Any]) -> bytes:
        return await (await self._get(vm_id)).read_file(path, **options)

    async def write_file(self, vm_id: str, path: str, content: bytes, options: Mapping[str, Any]) -> None:
        await (await self._get(vm_id)).write_file(path, content, **options)

    async def stat(self, vm_id: str, path: str) -> FileStat:
        return await (await self._get(vm_id)).stat(path)

    async def exists(self, vm_id: str, path: str) -> bool:
        return await (await self._get(vm_id)).exists(path)

    async def is_dir(self, vm_id: str, path: str) -> bool:
        return await (await self._get(vm_id)).is_dir(path)

    async def list_dir(self, vm_id: str, path: str, options: Mapping[str, Any]) -> list[DirEntry]:
        return [*await (await self._get(vm_id)).list_dir(path, **options)]

    async def remove(self, vm_id: str, path: str, options: Mapping[str, Any]) -> None:
        await (await self._get(vm_id)).remove(path, **options)

    async def make_dir(self, vm_id: str, path: str, options: Mapping[str, Any]) -> None:
        await (await self._get(vm_id)).make_dir(path, **options)

    async def move(self, vm_id: str, path: str, to: str) -> None:
        await (await self._get(vm_id)).move(path, to)

    async def chmod(self, vm_id: str, path: str, mode: int) -> None:
        await (await self._get(vm_id)).chmod(path, mode)

    async def chown(self, vm_id: str, path: str, options: Mapping[str, Any]) -> None:
        await (await self._get(vm_id)).chown(path, **options)

    async def pause(self, vm_id: str) -> None:
        await (await self._get(vm_id)).pause()

    async def resume(self, vm_id: str, options: Mapping[str, Any]) -> None:
        await (await self._get(vm_id)).resume(**options)

    async def ping(self, vm_id: str, options: Mapping[str, Any]) -> float:
        return await (await self._get(vm_id)).ping(**options)

    async def stats(self, vm_id: str) -> Stats:
        return await (await self._get(vm_id)).stats()

    async def console_tail(self, vm_id: str) -> str:
        return (await self._get(vm_id)).console_tail()

    async def spool(self, token: str, piece: bytes, at: int) -> None:
        """A piece of a tar that `put` is to take, which begins `at` so many bytes; forgotten where no more comes.

        Raises `ClusterError` where what comes before it is not here.
        """
        self._leases[token] = time.monotonic() + _SPOOL_S
        if token not in self._spooled and at == 0:
            self._spooled[token] = tempfile.NamedTemporaryFile(prefix="vmfork-cluster-")  # noqa: SIM115 - till put
        await asyncio.to_thread(self._check_spooled(self._spooled.get(token), at).write, piece)

    async def put(self, vm_id: str, token: str, size_bytes: int, guest: str, options: Mapping[str, Any]) -> Copied:
        """The spooled tar of that size is in the machine's folder `guest`; the spool is gone in any case."""
        self._leases.pop(token, None)
        with ExitStack() as stack:
            if (spooled := self._spooled.pop(token, None)) is not None:
                stack.enter_context(spooled)
            tar = self._check_spooled(spooled, size_bytes)
            tar.seek(0)
            return await (await self._get(vm_id)).put_tar(tar, guest, **options)

    def _check_spooled(
        self, spooled: tempfile._TemporaryFileWrapper[bytes] | None, size_bytes: int
    ) -> tempfile._TemporaryFileWrapper[bytes]:
        """What was spooled, which is that long. Raises `ClusterError` where it is not."""
        if spooled is None or spooled.tell() != size_bytes:
            reason = "its process began anew, or nothing more came for too long"
            raise ClusterError(f"node {self.name} has not all of what was sent: {reason}", hint="copy it again")
        return spooled

    async def get(self, vm_id: str, guest: str, options: Mapping[str, Any]) -> AsyncIterator[bytes | Copied]:
        """A tar of the guest's file or folder in pieces; then what was copied."""
        vm = await self._get(vm_id)
        with tempfile.TemporaryFile(prefix="vmfork-cluster-") as tar:
            copied = await vm.get_tar(guest, tar, **options)
            tar.seek(0)
            while piece := await asyncio.to_thread(tar.read, PIECE_BYTES):
                yield piece
        yield copied

    async def fork_vm(
        self, vm_id: str, count: int, key: str, client: str, options: Mapping[str, Any]
    ) -> list[Machine | VMForkError]:
        """Forks of a machine that runs here, which runs on; behind them errors, where some may fail."""
        vm = await self._get(vm_id)
        self._leases[client] = time.monotonic() + LEASE_S  # another program than the one that made it may ask
        forks = await vm.fork(count, **options)
        made = [
            each if isinstance(each, VMForkError) else self._keep(each, f"{key}-{number}", client, lasts=False)
            for number, each in enumerate(forks)
        ]
        self._counts["forks"] += sum(isinstance(each, Machine) for each in made)
        return made

    async def close(self, vm_id: str) -> None:
        """The machine is gone. One that is gone already is no error."""
        machine, vm = self._machines.pop(vm_id, None), self._vms.pop(vm_id, None)
        self._clients.pop(vm_id, None)
        # At once: whoever asks by its key meanwhile gets another.
        tickets = self._tickets.pop(machine.key, set()) if machine is not None else set()
        if machine is not None and machine.lasts:
            self._closing.add(vm_id)
            try:
                with suppress(VMNotFound):
                    vm = vm or await VM.connect(vm_id, places=self._instance.places)
                    await vm.stop(grace_s=0.0)
            except BaseException:
                self._machines[vm_id] = machine  # it may run on, and is still ours
                self._tickets[machine.key] |= tickets
                raise
            finally:
                self._closing.discard(vm_id)
        if machine is not None:
            self._ended[machine.key] = time.monotonic()
        if vm is not None:
            await vm.aclose()

    async def pull(self, name: str, digest: str, sources: Sequence[str]) -> None:
        """The template, or a later one of its name, is in force here. Several who ask at once wait for one transfer.

        Of several templates two come at a time.
        """
        await self._find_kept(name)
        await self._bring(name, digest, sources)

    async def _bring(self, name: str, digest: str, sources: Sequence[str]) -> None:
        """The same, once what this host keeps of it is here."""
        held = await asyncio.to_thread(self._find_held, name)
        if held is not None and held.wanted.digest == digest:
            return
        wanted = name, digest
        if wanted not in self._pulls:
            self._counts["pulls"] += 1
            task = asyncio.ensure_future(self._pull(name, digest, sources))
            self._pulls[wanted] = task
            task.add_done_callback(lambda _: self._pulls.pop(wanted, None))
        await asyncio.shield(self._pulls[wanted])

    async def _pull(self, name: str, digest: str, sources: Sequence[str]) -> None:
        async with self._pulls_at_once:
            await take_over(
                name,
                digest,
                sources=[each for each in sources if each != self.name],
                peers=self._peers,
                instance=self._instance,
                config=self._config,
                make_room=self._eviction.make_room,
                find_own=self._packed.find_layer,
            )
        await self._follow()

    async def keeps(self, digest: str) -> bool:
        """Whether the template of that digest is in force here, and stays."""
        if self._is_draining or self._eviction.is_going(digest):
            return False
        found = await asyncio.to_thread(self._find_generation, digest)
        return found is not None and not self._eviction.is_going(digest)

    async def artifact(self, digest: str) -> bytes:
        """What the template travels as; its layers can be asked for. Raises `TemplateNotFound`."""
        if (found := await asyncio.to_thread(self._find_generation, digest)) is None:
            raise TemplateNotFound(digest[:12])
        name, generation = found
        return await self._packed.pack(name, digest, generation=generation, instance=self._instance)

    async def layer(self, digest: str, layer: str) -> bytes:
        data = await self._packed.read(digest, layer)
        self._counts["sent_bytes"] += len(data)
        return data

    async def aclose(self) -> None:
        """Machines that do not last are gone; those that last run on."""
        self._has_ended = True
        for watch in (self._watch, self._bringing):
            if watch is not None:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
        tasks = [*self._asked.values(), *self._pulls.values(), *self._reviving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._pools.aclose)
            for vm in self._vms.values():
                closing.push_async_callback(vm.aclose)
            self._vms.clear()
        for spooled in self._spooled.values():
            spooled.close()

    async def _make(self, order: Order) -> Machine:
        template = await self._open(order)
        deadline = time.monotonic() + order.wait_s

        async def fork(wait_s: float) -> VM:
            if order.lasts:
                labels = {_MARK: self.name, _KEY: order.key}
                return await template.start(labels=labels, wait_s=wait_s, **order.options)
            return await template.fork(wait_s=wait_s, **order.options)

        begun = time.monotonic()
        try:
            # One that lasts has a process of its own to keep it, from its beginning on.
            ready = None if order.lasts else await self._pools.take(order.template, order.options)
            self._counts["from_pool"] += ready is not None
            vm = ready or await self._wait_in_line(fork, deadline)
        except VMForkError:
            self._counts["forks_failed"] += 1
            raise
        self._counts["forks"] += 1
        self._counts["fork_seconds"] += time.monotonic() - begun
        return self._keep(vm, order.key, order.client, lasts=order.lasts, template=order.template)

    async def _wait_in_line(self, fork: Any, deadline: float) -> VM:
        """What `fork` gives, once whoever came before has a machine. Raises `NoRoom` when it is too late for that."""
        if not self._in_line:
            try:
                found: VM = await fork(0.0)
            except NoRoom:
                if not await self._pools.give_way() and time.monotonic() >= deadline:
                    raise
            else:
                return found
        self._in_line += 1
        try:
            before = self._in_line - 1
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._line.acquire()
            except TimeoutError as error:
                reason = f"{before} callers who came before wait for room on node {self.name}"
                raise NoRoom("memory", reason, hint="close machines, or wait longer (wait_s)") from error
            try:
                found = await fork(max(0.0, deadline - time.monotonic()))
            finally:
                self._line.release()
        finally:
            self._in_line -= 1
        return found

    async def _open(self, order: Order) -> Template:
        """The template of the order, which was taken over from another node where it was not here.

        Where a later one of its name is, that counts: whoever asked had not heard of it.
        """
        held = await self._find_kept(order.template)
        if held is None or (held.wanted.digest != order.digest and held.created_at <= order.created_at):
            if not order.sources:
                raise TemplateNotFound(order.template)
            await self._bring(order.template, order.digest, order.sources)
        return await Template.open(order.template, config=self._config, places=self._instance.places)

    def _keep(self, vm: VM, key: str, client: str, *, lasts: bool, template: str = "") -> Machine:
        machine = Machine(
            id=vm.id,
            node=self.name,
            template=template or vm.template,
            key=key,
            lasts=lasts,
            created_at=vm.facts.created_at,
        )
        self._machines[vm.id], self._vms[vm.id] = machine, vm
        if not lasts:
            self._clients[vm.id] = {client}
        return machine

    async def _get(self, vm_id: str) -> VM:
        """The machine. Raises `VMNotFound`."""
        if vm_id not in self._machines:
            raise VMNotFound(vm_id, "its node has no machine of that id: it has ended", hint=LISTED)
        if vm_id not in self._vms:
            self._vms[vm_id] = await VM.connect(vm_id, places=self._instance.places)
        return self._vms[vm_id]

    async def _find_again(self, *, own: bool = True) -> None:
        """Machines that last are ours too: those that we made before, and those of nodes that ended."""
        living = None if self._living is None else {*await self._living()}
        for record in await VM.list(label=_MARK, places=self._instance.places):
            of = record.labels[_MARK]
            is_ours = own if of == self.name else living is not None and of not in living
            if is_ours and record.id not in self._machines and record.id not in self._closing:
                self._tickets[record.labels.get(_KEY, "")].add("")  # whoever made it, and who asked for it since
                self._machines[record.id] = Machine(
                    id=record.id,
                    node=self.name,
                    template=record.template,
                    key=record.labels.get(_KEY, ""),
                    lasts=True,
                    created_at=record.created_at,
                )

    async def _end_forgotten(self) -> None:
        """Ends machines whose program was not heard of any more, and drops what it had begun to send."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for vm_id in [*self._clients]:
                if self._is_forgotten(vm_id):  # as it is now: to end another takes its time
                    with _going_on("machine %s of a program that ended", vm_id):
                        await self.close(vm_id)
            now = time.monotonic()
            for token in [each for each in self._spooled if self._leases[each] < now]:
                self._spooled.pop(token).close()
            with _going_on("machines that are kept ready"):
                await self._follow()
            if self._living is not None:  # of a node that ended it may be known later
                with _going_on("machines of nodes that ended"):
                    await self._find_again(own=False)
            # Of a client that has a machine the next round asks again: it was not closed.
            kept = self.list_clients()
            self._leases = {each: until for each, until in self._leases.items() if until >= now or each in kept}

    def _is_forgotten(self, vm_id: str) -> bool:
        """Whether none of the programs that have the machine was heard of for too long."""
        now, clients = time.monotonic(), self._clients.get(vm_id)
        return clients is not None and all(self._leases.get(each, 0.0) < now for each in clients)

    async def _bring_back(self) -> None:
        """Templates that are kept on disk are in memory after a reboot: only what a node tells of is asked for."""
        for name in await asyncio.to_thread(list_persisted, self._instance.places):
            await asyncio.shield(self._begin_reviving(name))
            await asyncio.sleep(_REVIVAL_PAUSE_S)

    def _begin_reviving(self, name: str) -> asyncio.Task[None]:
        if name not in self._reviving:
            task = self._reviving[name] = asyncio.ensure_future(self._revive(name))
            task.add_done_callback(lambda _: self._reviving.pop(name))
        return self._reviving[name]

    async def _revive(self, name: str) -> None:
        try:
            await Template.open(name, config=self._config, places=self._instance.places)
        except VMForkError as error:
            _log.warning("template %s stays on disk: %s", name, error)

    async def _find_kept(self, name: str) -> Held | None:
        """The template of that name in force here, brought back where its host keeps it on disk.

        What does not come within seconds, or does not fit any more, is no reason against another of its name.
        """
        held = await asyncio.to_thread(self._find_held, name)
        if held is not None or not locate_persisted(name, self._instance.places).exists():
            return held
        task, end, is_done = self._begin_reviving(name), time.monotonic() + _REVIVAL_LIMIT_S, False
        while held is None and not is_done and time.monotonic() < end:
            # It may be here before its turn to be looked at has come.
            is_done = bool((await asyncio.wait({task}, timeout=_REVIVAL_LOOK_S))[0])
            held = await asyncio.to_thread(self._find_held, name)
        return held

    async def _follow(self) -> None:
        """Machines wait of what is in force here now."""
        if self._pools.are_wanted and not self._is_draining:
            await self._pools.follow(await self._list_held())

    async def _list_held(self) -> dict[str, Held]:
        """The templates in force here whose RAM is of this boot of the host, by name."""

        def look() -> dict[str, Held]:
            names = TemplateStore(self._instance.places.templates).list_names()
            return {name: held for name in names if (held := self._find_held(name)) is not None}

        return await asyncio.to_thread(look)

    def _find_generation(self, digest: str) -> tuple[str, str] | None:
        """The name and the generation of the template of that digest."""
        store = TemplateStore(self._instance.places.templates)
        for name in store.list_names():
            with suppress(TemplateError, StoreBusy):
                m = store.read_manifest(name)
                if digest_of(m) == digest:
                    return name, m.generation
        return None

    def _find_held(self, name: str) -> Held | None:
        try:
            m = TemplateStore(self._instance.places.templates).read_manifest(name)
        except (TemplateError, StoreBusy):
            return None
        if m.host_boot_id != facts.boot_id():
            return None
        digest = digest_of(m)
        wanted = Wanted(
            digest=digest,
            traits=m.traits,
            agent_protocol=m.agent_protocol,
            share_mib=charge_for_fork(hardware_of(m), self._config.limits).share_mib,
            layers=self._packed.list_pieces(m, digest, DiskStore(self._instance.places.disks)),
        )
        return Held(name=name, created_at=m.created_at, wanted=wanted)

    def _read_room(self, share_mib: int) -> tuple[int, int, str]:
        """MiB in all, MiB that can be promised to machines of that share, and why none is let in all the same."""
        unit = Charge(share_mib=share_mib, most_mib=share_mib, tasks=_TASKS)
        fitting, _, readings = count_room(self._instance.places.vms, unit, self._config.limits)
        limit, now = self._config.limits.max_pressure, readings.pressure_percent
        strained = ""
        if now is not None and limit and now > limit:
            strained = f"all its tasks wait for memory {now:g} % of the time"
        return readings.total_mib, fitting * share_mib, strained


def is_called_off() -> bool:
    """Whether a cancel that arrives is of this very call, and not of what it waits for, which others gave up."""
    call = asyncio.current_task()
    return call is None or call.cancelling() > 0


@contextmanager
def _going_on(what: str, *of: object) -> Iterator[None]:
    """What fails in the block is told: the rest is done all the same, and all of it again in the next round."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, machines of programs that end are to end
        _log.warning(f"{what}: %s", *of, error)
