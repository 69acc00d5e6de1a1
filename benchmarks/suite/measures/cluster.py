"""Machines over three nodes of a Ray cluster on this host, beside a node's own, and beside bare calls of Ray's."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.suite.figures import NotRun, Row, Samples, Target, milliseconds
from benchmarks.suite.measure import Measure
from vmfork.api.template import Template
from vmfork.cluster.cluster import Cluster
from vmfork.config import Places
from vmfork.store import TemplateStore
from vmfork.store.ram_file import find_extents

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from benchmarks.suite.context import Context
    from vmfork.machine.result import ExecResult

_NODES = 3
_COUNT, _QUICK_COUNT = 60, 12
# A fork under TCG that does nothing, with what it was promised.
_FORK_MIB = 170
# What a call of Ray's may cost more than a bare one, by issue.
_MORE = 1.2
_PIECE = 4 << 20
_WARM = 5


class _Bare:
    """Does nothing: what a call to it takes is Ray's."""

    async def ping(self) -> None:
        return None

    async def last(self, wanted_s: float) -> float:
        """How long it slept, in s."""
        begun = time.perf_counter()
        await asyncio.sleep(wanted_s)
        return time.perf_counter() - begun


class _ByHand:
    """A machine in an actor of one's own: what a call over Ray to a program takes without a cluster of ours."""

    async def fork(self, name: str) -> None:
        import_module("vmfork.cluster.ray_site").take_back_niceness()  # as a node does
        self._vm = await (await Template.open(name)).fork()

    async def exec(self, argv: list[str]) -> ExecResult:
        return await self._vm.exec(argv)

    async def close(self) -> None:
        await self._vm.aclose()


class _Sender:
    """A template's RAM by hand: read, hashed, put."""

    def pieces(self, path: str) -> Iterator[tuple[int, str, bytes]]:
        fd = os.open(path, os.O_RDONLY)
        for begin, end in find_extents(fd):
            for at in range(begin, end, _PIECE):
                data = os.pread(fd, min(_PIECE, end - at), at)
                yield at, hashlib.sha256(data).hexdigest(), data
        os.close(fd)


class _Receiver:
    """Got, compared, written."""

    def take(self, sender: Any, path: str, target: str) -> int:
        ray, size = import_module("ray"), 0
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for ref in sender.pieces.options(num_returns="streaming").remote(path):
            at, digest, data = ray.get(ref)
            if hashlib.sha256(data).hexdigest() != digest:
                raise AssertionError(at)
            size += os.pwrite(fd, data, at)
        os.close(fd)
        return size


@asynccontextmanager
async def _open_nodes(context: Context) -> AsyncIterator[dict[str, Places]]:
    """Three nodes, by name; the first has the places of the run, and its templates."""
    ray, utils = import_module("ray"), import_module("ray.cluster_utils")
    scratch, found = context.scratch("cluster"), dict[str, Places]()
    nodes = utils.Cluster()

    def add(number: int) -> None:
        own = Places(_make(scratch, f"home-{number}"), _make(scratch, f"run-{number}")) if number else context.places
        env = context.environment({"VMFORK_HOME": str(own.home), "VMFORK_RUNTIME_DIR": str(own.runtime)})
        found[nodes.add_node(env_vars=env, num_cpus=1).node_id[:12]] = own

    try:
        for number in range(_NODES):
            context.report(f"starting node {number + 1} of {_NODES}")
            add(number)  # Ray sets signals up: it wants the main thread
        ray.init(address=nodes.address, namespace="vmfork", log_to_driver=False)
        yield found
    finally:
        ray.shutdown()
        nodes.shutdown()
        for places in [*found.values()][1:]:
            TemplateStore(places.templates).clear()


def _make(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir(mode=0o700)
    return made


async def _wait_for_nodes(cluster: Cluster) -> None:
    while len((await cluster.status())["nodes"]) < _NODES:  # noqa: ASYNC110 - nobody tells that a node has come
        await asyncio.sleep(0.5)


async def _time(work: Any) -> float:
    """How long it took, in s, less what it says that it slept."""
    begun = time.perf_counter()
    slept = await work
    return time.perf_counter() - begun - (slept if isinstance(slept, float) else 0.0)


async def _measure_calls(context: Context, samples: Samples, template: Template, cluster: Cluster, node: str) -> None:
    """A fork to its first program, and a warm program: here, over the cluster, and what Ray takes for a call."""
    bare = _pinned(_Bare, node, max_concurrency=1000).remote()
    await bare.ping.remote()
    by_hand = _pinned(_ByHand, node, max_concurrency=1000).remote()
    await by_hand.fork.remote(template.name)

    async def one() -> dict[str, float]:
        begun = time.perf_counter()
        async with await template.fork() as own:
            await own.exec(["true"], check=True)
            own_first = time.perf_counter() - begun
            begun = time.perf_counter()
            async with cluster.fork(template.name, node=node) as far:
                await far.exec(["true"], check=True)
                first = time.perf_counter() - begun
                warm = []
                for _ in range(_WARM):
                    warm.append(await _time(own.exec(["true"])))
                    await far.exec(["true"])
                turns = {
                    "call": bare.ping.remote,
                    "lasting": partial(bare.last.remote, median(warm)),
                    "own": lambda: own.exec(["true"]),
                    "far": lambda: far.exec(["true"]),
                    "hand": lambda: by_hand.exec.remote(["true"]),
                }
                calls = []
                # Each comes after each of the others as often: what follows on a call to Ray finds Ray's threads awake,
                # and what follows on a program of this process finds them asleep.
                for order in _balance(turns):
                    took = {turn: await _time(turns[turn]()) for turn in order}
                    samples.add("exec", took["far"])
                    samples.add("exec-allowed", took["own"] + _MORE * took["call"])
                    samples.add("exec-lasting", took["own"] + _MORE * took["lasting"])
                    samples.add("exec-by-hand", took["hand"])
                    samples.add("call", took["call"])
                    samples.add("lasting", took["lasting"])
                    calls.append(took["call"])
        return {"first": first, "first-allowed": own_first + 2 * _MORE * median(calls)}

    await context.interleave(samples, {"calls": one}, rounds=15, quick_rounds=3)
    await by_hand.close.remote()


async def _measure_many(context: Context, samples: Samples, name: str, cluster: Cluster) -> None:
    count = _QUICK_COUNT if context.quick else _COUNT

    async def many() -> dict[str, float]:
        async with AsyncExitStack() as stack:
            begun = time.perf_counter()
            vms = await asyncio.gather(*(cluster.fork(name, wait_s=300.0) for _ in range(count)))
            took = time.perf_counter() - begun
            for vm in vms:
                stack.push_async_callback(vm.aclose)
            told = [each["id"] for each in (await cluster.status())["machines"]]
            found = Counter(vm.node for vm in vms)
            spread = (max(found.values()) - min(found.get(node, 0) for node in found)) / (count / _NODES)
            return {
                "many": took,
                "lost": float(len({vm.id for vm in vms} - {*told})),
                "doubled": float(len(told) - len({vm.id for vm in vms})),
                "spread": spread if len(found) == _NODES else float(_NODES),
            }

    await context.interleave(samples, {"many": many}, rounds=3, quick_rounds=1, warm_up=0)


async def _measure_transfer(
    context: Context, samples: Samples, template: Template, cluster: Cluster, nodes: dict[str, Places]
) -> None:
    source, target, *_ = nodes
    sender, receiver = _pinned(_Sender, source).remote(), _pinned(_Receiver, target).remote()
    path = context.places.templates / template.name / template.generation / "memory"
    written = nodes[target].runtime / "by-hand"

    async def remove() -> None:
        await (await Template.open(template.name, places=nodes[target])).remove()

    async def travel() -> float:
        took = await _time(cluster.prefetch(template.name, nodes=[target]))
        await remove()
        return took

    async def by_hand() -> float:
        took = await _time(receiver.take.remote(sender, str(path), str(written)))
        written.unlink()
        return took

    await context.interleave(samples, {"travel": travel, "by-hand": by_hand}, rounds=6, quick_rounds=2)


def _balance(turns: Iterable[str]) -> list[list[str]]:
    """Orders of five in which each comes after each of the others as often (E. J. Williams, 1949)."""
    names, first = [*turns], (0, 1, 4, 2, 3)
    shifted = [[names[(number + shift) % len(names)] for number in first] for shift in range(len(names))]
    return [*shifted, *(order[::-1] for order in shifted)] * 2


def _pinned(kind: type, node: str, **options: Any) -> Any:
    ray = import_module("ray")
    (whole,) = (each["NodeID"] for each in ray.nodes() if each["NodeID"].startswith(node))
    return ray.remote(num_cpus=0, label_selector={"ray.io/node-id": whole}, **options)(kind)


async def run(context: Context) -> Samples:
    if find_spec("ray") is None:
        raise NotRun("Ray is not installed: pip install 'vmfork[ray]'")
    count = _QUICK_COUNT if context.quick else _COUNT
    context.check_memory(count * _FORK_MIB)
    template, samples = await context.template(), Samples()
    async with _open_nodes(context) as nodes, Cluster.connect() as cluster:
        await _wait_for_nodes(cluster)
        first = next(iter(nodes))
        await _measure_calls(context, samples, template, cluster, first)
        await _measure_transfer(context, samples, template, cluster, nodes)
        await cluster.prefetch(template.name)
        await _measure_many(context, samples, template.name, cluster)
    return samples


_RAYS = "Each hop of a call wakes a thread on processors that guests use as well."
_PLACED = "What is known of a node is a second old; what was promised since is counted."

MEASURE = Measure(
    name="cluster",
    title="Over a cluster",
    unit="s",
    run=run,
    budget_s=90.0,
    is_asked_for=True,
    rows=(
        Row(
            key="cluster.first",
            text="fork to first exec over a cluster, over a node's own and 1.2 times two bare calls of Ray's",
            kind="ratio",
            of="first",
            to="first-allowed",
            target=Target(at_most=1),
            bounds=_RAYS,
        ),
        Row(
            key="cluster.exec",
            text="exec over a cluster, over a node's own and 1.2 times one bare call",
            kind="ratio",
            of="exec",
            to="exec-allowed",
            target=Target(at_most=1),
            bounds=_RAYS,
        ),
        Row(
            key="cluster.exec-lasting",
            text="exec over a cluster, over a node's own and 1.2 times one bare call that lasts as long",
            kind="ratio",
            of="exec",
            to="exec-lasting",
        ),
        Row(
            key="cluster.exec-by-hand",
            text="exec over a cluster, over the same program in a machine of an actor of one's own",
            kind="ratio",
            of="exec",
            to="exec-by-hand",
        ),
        milliseconds("cluster.exec-time", "exec on a warm VM of a cluster", of="exec"),
        milliseconds("cluster.call", "a bare call to an actor of Ray's", of="call"),
        milliseconds("cluster.lasting", "a bare call that sleeps as long, less what it slept", of="lasting"),
        Row(
            key="cluster.lost",
            text="of 60 forks at once over 3 nodes, lost",
            kind="value",
            of="lost",
            statistic="mean",
            target=Target(at_most=0),
            bounds="A machine is there, or its caller is told.",
        ),
        Row(
            key="cluster.doubled",
            text="of 60 forks at once over 3 nodes, doubled",
            kind="value",
            of="doubled",
            statistic="mean",
            target=Target(at_most=0),
            bounds="A key is one machine.",
        ),
        Row(
            key="cluster.spread",
            text="60 forks over 3 nodes: most less fewest, over the mean",
            kind="value",
            of="spread",
            target=Target(at_most=0.2),
            bounds=_PLACED,
        ),
        Row(key="cluster.many", text="60 forks at once over 3 nodes", kind="value", of="many", unit="s"),
        Row(
            key="cluster.transfer",
            text="speed of a template's transfer, over read, hash, put, get, compare, write by hand",
            kind="ratio",
            of="by-hand",
            to="travel",
            target=Target(at_least=0.8),
            bounds="It is made smaller once where it is, larger where it goes, and compared as a whole there.",
            smaller_is_better=False,
        ),
        Row(
            key="cluster.transfer-time",
            text="a template of 256 MiB to another node",
            kind="value",
            of="travel",
            unit="s",
        ),
    ),
)
