"""A cluster without an engine and without machines: real front, real directory, nodes that only say they made one."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from vmfork.cluster.directory import Directory
from vmfork.cluster.placement import Offer, Wanted
from vmfork.cluster.terms import Held, Machine, Order, Report
from vmfork.errors import NodeLost, TemplateUnfit, VMForkError
from vmfork.machine.result import ExecResult

WANTED = Wanted(digest="d", share_mib=100, layers={"a": 1000})
HELD = Held(name="py", created_at="2026-01-01", wanted=WANTED)


class FakeNode:
    """Keeps the promises of `Node.fork`, `drop` and `pull`; what a test sets makes it fail."""

    def __init__(self, name: str, *, holds: bool = True, total_mib: int = 10_000, **offer: Any) -> None:
        self.name = name
        self.held = (HELD,) if holds else ()
        self.total_mib = total_mib
        self.offer = offer
        self.machines: dict[str, Machine] = {}
        self.made = 0
        self.renewed: list[str] = []
        self.orders: list[Order] = []
        self.version = "1"
        self.counts: dict[str, float] = {}
        self.is_lost = False
        self.is_unfit = False
        self.is_silent = False
        self.is_cut = False
        self.is_draining = False
        self.dies_after_making = False
        self.fails: VMForkError | None = None
        self.fork_fails: VMForkError | None = None
        self.asked: list[str] = []
        self.dropped: list[tuple[str, str]] = []
        self.gate: asyncio.Event | None = None

    async def serve(self, verb: str, *args: Any) -> Any:
        if self.is_lost or self.is_silent or self.is_cut:
            raise NodeLost(self.name, is_cut=self.is_cut)
        return await getattr(self, verb)(*args)

    async def report(self) -> Report:
        offer = Offer(
            name=self.name,
            templates=frozenset(each.wanted.digest for each in self.held),
            total_mib=self.total_mib,
            to_give_mib=self.total_mib - 100 * len(self.machines),
            running=len(self.machines),
            is_draining=self.is_draining,
            **self.offer,
        )
        machines = tuple(self.machines.values())
        return Report(
            offer=offer,
            version=self.version,
            held=self.held,
            machines=machines,
            asked=tuple(self.asked),
            counts=self.counts,
        )

    async def fork(self, order: Order) -> Machine:
        self.orders.append(order)
        if self.gate is not None:
            await self.gate.wait()
        if self.is_unfit:
            raise TemplateUnfit(order.template, "qemu.version", "7", "8", source="x")
        if order.digest not in {each.wanted.digest for each in self.held}:
            await self.pull(order.template, order.digest, order.sources)
        if self.fork_fails is not None:
            raise self.fork_fails
        for machine in self.machines.values():
            if machine.key == order.key:
                return machine
        self.made += 1
        made = Machine(
            id=f"{self.name}-{self.made}", node=self.name, template=order.template, key=order.key, lasts=order.lasts
        )
        self.machines[made.id] = made
        if self.dies_after_making:
            self.is_lost = True
            raise NodeLost(self.name)
        return made

    async def drop(self, key: str, ticket: str) -> None:
        self.dropped.append((key, ticket))
        await asyncio.sleep(0)
        self.machines = {each: m for each, m in self.machines.items() if m.key != key}

    async def pull(self, name: str, digest: str, sources: Any) -> None:
        assert sources
        if self.fails is not None:
            raise self.fails
        if self.is_unfit:
            raise TemplateUnfit(name, "qemu.version", "7", "8", source="x")
        self.held = (HELD,)

    async def set_draining(self, is_draining: bool) -> None:
        self.is_draining = is_draining

    async def renew(self, client: str) -> None:
        self.renewed.append(client)

    async def exec(self, vm_id: str, argv: Any, options: Any) -> ExecResult:
        return ExecResult(argv=tuple(argv), exit_code=3, duration_s=0.1, stdout_bytes=self.name.encode())

    async def close(self, vm_id: str) -> None:
        self.machines.pop(vm_id, None)


class FakeSite:
    """All in one process: what an engine carries is called."""

    client = "program"
    missing: dict[str, str] = {}  # noqa: RUF012 - nobody is

    def __init__(self, *nodes: FakeNode, seed: int = 1) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.directory = Directory(self, version="1", rng=Random(seed))

    async def list_nodes(self) -> list[str]:
        return [name for name, node in self.nodes.items() if not node.is_lost]

    async def call(self, node: str, verb: str, *args: Any) -> Any:
        return await self.nodes[node].serve(verb, *args)

    async def ask(self, verb: str, *args: Any) -> Any:
        return await getattr(self.directory, verb)(*args)

    async def stream(self, node: str, verb: str, *args: Any):
        if self.nodes[node].is_lost:
            raise NodeLost(node)
        for piece in ("one", "two"):
            yield piece

    def forget_directory(self) -> None:
        """As one that was restarted: it knows nothing."""
        self.directory = Directory(self, version="1", rng=Random(2))

    def list_machines(self) -> list[Machine]:
        return [machine for node in self.nodes.values() for machine in node.machines.values()]

    async def aclose(self) -> None:
        pass
