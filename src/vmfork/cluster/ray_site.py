"""Nodes and directory as actors of Ray: one on each node, pinned to it, and one directory.

```
namespace vmfork     vmfork-directory        detached, no CPU, restarted; beside the head
                     vmfork-node:NODE        the same, pinned by the label ray.io/node-id; NODE is the beginning of that
groups of each       control                 what must be answered whatever else goes on
                     work                    forks, programs, files: a long one keeps nobody from control
                     pull                    layers of templates, as they are given
                     life                    nothing but an answer: whether it can be reached at all
```
An actor runs all that is vmfork's on one event loop, that of the group `work`: Ray has one for each group, and a call
that passes from one to another waits for two threads to wake.
Errors of vmfork's come back as values, so that they are what they were. Nothing is tried again by Ray: whoever asked
does, by the same key. A call and its answer are one value of bytes each: Ray pickles, sends and unpickles each argument
by itself, and takes half a millisecond longer for that (decision 64).
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading
import time
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray import cloudpickle
from ray._private.state import state
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vmfork.border import translating
from vmfork.cluster.directory import Directory
from vmfork.cluster.node import Node
from vmfork.cluster.terms import find_version
from vmfork.config.loader import load_settings
from vmfork.errors import Closed, ClusterError, InternalError, NodeLost, VMForkError
from vmfork.machine.trace import carry, continued

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence

T = TypeVar("T")

_log = logging.getLogger("vmfork")

NAMESPACE = "vmfork"
_DIRECTORY = "vmfork-directory"
_ID_LABEL = "ray.io/node-id"
# What the node of the head alone has.
_HEAD = "node:__internal_head__"
_NAME_LENGTH = 12
_GROUPS = {"control": 16, "work": 1000, "pull": 8, "life": 1}
_LOST = (RayActorError, ActorUnschedulableError, NodeDiedError, ObjectLostError)
_CONTROL = {"report", "renew", "drop", "close", "keeps", "set_draining"}
# What is given, and not what is taken: that waits for others, and two nodes that take from each other would wait for
# ever once neither had a call left to give by.
_PULL = {"artifact", "layer"}
# These carry so much that one copy less of it counts for more.
_LARGE = {"layer", "spool", "read_file", "write_file"}
# The module of what a program defines itself, as a pickle names it.
_PROGRAM = b"__main__"
# Nothing tells a caller that a node has ended whose answer is due: it is looked at so often.
_LOOK_EVERY_S = 1.0
# A node that is asked for a sign of life, and gives none for so long, is cut off. Ray waits for about a minute.
_SILENT_S = 10.0
_DIRECTORY_LIMIT_S = 60.0
# Less than a third of the time after which a node ends the machines of a program that it has not heard of.
_JOBS_EVERY_S = 8.0
_AGAIN_S = 0.2

_ACTOR = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
_NAMED = {"namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}


def _start_loop() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vmfork-cluster", daemon=True).start()
    return loop


class _Home:
    """The event loop that all of an actor's own runs on."""

    def __init__(self) -> None:
        self._found: Future[asyncio.AbstractEventLoop] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None

    def settle(self) -> None:
        """It is the running one; where that is not Python's own (Ray takes uvloop where it is installed), a new one."""
        running = asyncio.get_running_loop()
        self._found.set_result(running if isinstance(running, asyncio.SelectorEventLoop) else _start_loop())

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, once it has run there; it waits until there is one."""
        if self._loop is None:
            self._loop = await asyncio.wrap_future(self._found)
        if self._loop is asyncio.get_running_loop():
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


async def _told(work: Coroutine[Any, Any, Any], carried: Mapping[str, str]) -> tuple[bool, Any]:
    """Whether it went well, and what it gave, or the error; its spans belong to the caller's."""
    try:
        with continued(carried), translating():
            return True, await work
    except VMForkError as error:
        return False, error


def take_back_niceness() -> None:
    """Our threads, and so our machines, are as nice as Ray itself, where the host lets us.

    Ray makes its workers 15 nicer (`RAY_worker_niceness`): on a busy host a guest would get a thirtieth of the time
    that one of the same host gets.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, os.getppid())
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # not ours to say; or it has just ended
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)


class NodeActor:
    """The actor of one node."""

    def __init__(self, name: str, labels: Mapping[str, str]) -> None:
        take_back_niceness()
        self._name, self._labels, self._settings = name, dict(labels), load_settings()
        self._home, self._opening = _Home(), asyncio.Lock()
        self._node: Node | None = None
        # Nobody else need know that it has begun, or begun again.
        ray.get_runtime_context().current_actor.begin.options(concurrency_group="work").remote()

    async def begin(self) -> None:
        """The actor's own runs where this does."""
        self._home.settle()
        await self._home.run(_told(self._open(), {}))

    async def call(self, verb: str, args: Sequence[Any], carried: Mapping[str, str]) -> tuple[bool, Any]:
        """Whether it went well, and what it gave, or the error."""
        return await self._home.run(_told(self._serve(verb, args), carried))

    async def call_packed(self, packed: bytes) -> bytes:
        """The same, of what `call` is given."""
        return _pack(await self.call(*_unpack(packed)))

    async def stream(
        self, verb: str, args: Sequence[Any], carried: Mapping[str, str]
    ) -> AsyncIterator[tuple[bool, Any]]:
        """The same for each piece; an error is the last."""
        pieces = self._stream(verb, args)
        try:
            while True:
                told = await self._home.run(_told(_next(pieces), carried))
                if told == (True, None):
                    return
                yield told
                if not told[0]:
                    return
        finally:
            await self._home.run(_close(pieces))

    async def pid(self) -> int:
        """The process id of the actor."""
        return os.getpid()

    async def answer(self) -> None:
        """It can be reached."""

    async def _open(self) -> Node:
        """The node; one that could not be opened is tried again."""
        async with self._opening:
            if self._node is None:
                peers = _Peers()
                self._node = await Node.open(
                    self._name,
                    peers,
                    labels=self._labels,
                    config=self._settings.factory,
                    living=peers.list_nodes,  # Ray gives a host another name whenever it begins there
                )
                self._watch = asyncio.ensure_future(self._renew_living(self._node))
        return self._node

    async def _serve(self, verb: str, args: Sequence[Any]) -> Any:
        return await (self._node or await self._open()).serve(verb, *args)

    async def _stream(self, verb: str, args: Sequence[Any]) -> AsyncGenerator[Any, None]:
        async with aclosing((self._node or await self._open()).stream(verb, *args)) as pieces:
            async for piece in pieces:
                yield piece

    async def _renew_living(self, node: Node) -> None:
        """A program lives as long as Ray says so: it may have passed its machines on, and make no call by itself."""
        while True:
            await asyncio.sleep(_JOBS_EVERY_S)
            if clients := node.list_clients():
                try:
                    living = await asyncio.to_thread(_read_jobs)
                except Exception as error:  # noqa: BLE001 - what it raises is not written down; programs renew as well
                    _log.warning("Ray does not tell which programs live: %r", error)
                    continue
                for client in clients & living:
                    await node.renew(client)


class DirectoryActor:
    """The actor that has the directory."""

    def __init__(self) -> None:
        self._directory = Directory(_Peers(starts_nodes=True), version=find_version())
        ray.get_runtime_context().current_actor.begin.remote()

    async def begin(self) -> None:
        """It looks for nodes, as long as the actor lives."""
        self._watch = asyncio.ensure_future(self._directory.keep_looking())

    async def call_packed(self, packed: bytes) -> bytes:
        """Whether it went well, and what it gave, or the error, of a verb and its arguments."""
        verb, args = _unpack(packed)
        return _pack(await _told(getattr(self._directory, verb)(*args), {}))

    async def pid(self) -> int:
        """The process id of the actor."""
        return os.getpid()


def _pack(told: tuple[Any, ...]) -> bytes:
    """As Ray would: what a program defines itself goes along. The rest takes a third by the pickle of Python."""
    with suppress(pickle.PicklingError, AttributeError, TypeError):  # of what is defined in a function
        if _PROGRAM not in (plain := pickle.dumps(told)):
            return plain
    packed: bytes = cloudpickle.dumps(told)
    return packed


def _unpack(packed: bytes) -> Any:
    return pickle.loads(packed)  # noqa: S301 - from whom Ray takes pickles itself


async def _next(pieces: AsyncIterator[Any]) -> Any:
    return await anext(pieces, None)


async def _close(pieces: Any) -> None:
    with suppress(Exception):
        await pieces.aclose()


class _Peers:
    """Actors of nodes, found by their names; where they are missing, and we may, they are made."""

    def __init__(self, *, starts_nodes: bool = False) -> None:
        self._starts_nodes = starts_nodes
        self._actors: dict[str, Any] = {}
        self._session = _find_session()
        self._looked_at = 0.0
        self._alive: frozenset[str] = frozenset()
        # By node, what it is asked for as a sign of life, and since when.
        self._asked: dict[str, tuple[Future[None], float]] = {}
        self._looking = threading.Lock()  # handles of one process may be used from several event loops

    async def list_nodes(self) -> Sequence[str]:
        """The names of all nodes that live."""
        found = await asyncio.to_thread(self._read_nodes)
        if self._starts_nodes:
            for name, labels in found.items():
                self._start(name, labels)
        return [*found]

    async def call(self, node: str, verb: str, *args: Any) -> Any:
        """What the node's call of that name gives."""
        actor = await self._find(node)
        group = "control" if verb in _CONTROL else "pull" if verb in _PULL else "work"
        try:
            if verb in _LARGE:
                ref = actor.call.options(concurrency_group=group).remote(verb, args, carry())
                went_well, answer = await self._wait(ref, node)
            else:
                packed = _pack((verb, args, carry()))
                ref = actor.call_packed.options(concurrency_group=group).remote(packed)
                went_well, answer = _unpack(await self._wait(ref, node))
        except (RayError, OSError) as error:
            raise self._as_ours(error, node) from error
        if went_well:
            return answer
        raise answer

    async def stream(self, node: str, verb: str, *args: Any) -> AsyncGenerator[Any, None]:
        """What the node's call of that name gives, piece by piece."""
        actor = await self._find(node)
        pieces = actor.stream.options(concurrency_group="work", num_returns="streaming").remote(verb, args, carry())
        has_ended = False
        try:
            while True:
                try:
                    ref = await self._wait_for(anext(pieces, None), node)
                    if ref is None:
                        has_ended = True
                        return
                    went_well, piece = await self._wait(ref, node)
                except (RayError, OSError) as error:
                    has_ended = True
                    raise self._as_ours(error, node) from error
                if not went_well:
                    has_ended = True
                    raise piece
                yield piece
        finally:
            if not has_ended:
                with suppress(Exception):
                    ray.cancel(pieces)

    async def _find(self, node: str) -> Any:
        self._need_ray()
        if node not in self._actors:
            try:
                self._actors[node] = await asyncio.to_thread(_get_actor, f"vmfork-node:{node}")
            except ValueError as error:
                raise NodeLost(node, reason="no node of that name takes machines") from error
        return self._actors[node]

    async def _wait(self, ref: Any, node: str) -> Any:
        return await self._wait_for(asyncio.wrap_future(ref.future()), node, cancel=lambda: ray.cancel(ref))

    async def _wait_for(self, work: Any, node: str, *, cancel: Any = lambda: None) -> Any:
        """The answer. A call to an actor whose node has ended would wait for ever: the actor is pinned to it."""
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=_LOOK_EVERY_S))[0]:
                await self._check_life(node)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                with suppress(Exception):
                    cancel()

    async def _check_life(self, node: str) -> None:
        """Raises `NodeLost` where it has ended, or can be reached no more."""
        if not self._has_looked():
            await asyncio.to_thread(self._look)
        if node not in self._alive:
            raise NodeLost(node, reason="the node has ended")
        if await asyncio.to_thread(self._measure_silence, node) > _SILENT_S:
            raise NodeLost(node, reason=f"it did not answer for {_SILENT_S:g} s", is_cut=True)

    def _measure_silence(self, node: str) -> float:
        """Seconds for which the node has owed us a sign of life. One whose process is on its way owes none."""
        with self._looking:
            asked, since = self._asked.get(node, (None, 0.0))
            if asked is None or asked.done():
                self._ask_for_life(node)
                return 0.0
            silent_s = time.monotonic() - since
            if silent_s > _SILENT_S and not self._runs(node):
                self._asked[node] = asked, time.monotonic()
                return 0.0
            return silent_s

    def _ask_for_life(self, node: str) -> None:
        with suppress(RayError, KeyError):  # what Ray knows to have ended it tells by itself
            asked = self._actors[node].answer.options(concurrency_group="life").remote()
            self._asked[node] = asked.future(), time.monotonic()

    def _runs(self, node: str) -> bool:
        """Whether the node's process is there, as far as Ray knows, and not being begun."""
        with suppress(KeyError):
            told = state.actor_table(self._actors[node]._actor_id.hex())  # noqa: SLF001 - no other way
            return bool(told.get("State") == "ALIVE")
        return False

    def _look(self) -> None:
        with self._looking:
            if not self._has_looked():  # others may have looked meanwhile
                self._alive = frozenset(self._read_nodes())
                self._looked_at = time.monotonic()

    def _has_looked(self) -> bool:
        return time.monotonic() - self._looked_at < _LOOK_EVERY_S

    def _read_nodes(self) -> dict[str, dict[str, str]]:
        self._need_ray()
        try:
            told = ray.nodes()
        except Exception as error:  # what it raises is not written down
            raise ClusterError(f"Ray does not tell its nodes: {error!r}") from error
        return {
            each["NodeID"][:_NAME_LENGTH]: {**each.get("Labels", {}), _ID_LABEL: each["NodeID"]}
            for each in told
            if each["Alive"]
        }

    def _need_ray(self) -> None:
        """Raises `Closed` where Ray was shut down in this process: asked for anything, it would begin by itself."""
        if _find_session() != self._session:
            hint = "join it again: vmfork.Cluster.connect()"
            raise Closed("the cluster", "Ray was shut down in this process", hint=hint)

    def _start(self, name: str, labels: Mapping[str, str]) -> None:
        if name in self._actors:
            return
        # Groups are told with the class alone.
        kind = ray.remote(concurrency_groups={**_GROUPS}, **_ACTOR)(NodeActor)
        selector = {_ID_LABEL: labels[_ID_LABEL]}
        actor = kind.options(name=f"vmfork-node:{name}", label_selector=selector, **_NAMED)
        self._actors[name] = actor.remote(name, dict(labels))

    def _as_ours(self, error: Exception, node: str) -> VMForkError:
        if isinstance(error, RayTaskError):
            return InternalError(f"node {node}: {error}")
        if isinstance(error, (*_LOST, OSError)):
            self._actors.pop(node, None) if not self._starts_nodes else None
            return NodeLost(node, reason=str(error).strip().splitlines()[0] if str(error).strip() else "")
        return ClusterError(f"node {node}: {error}")


def _read_jobs() -> frozenset[str]:
    """The programs that live. Ray has no other way to ask that needs no dashboard."""
    return frozenset(str(each["JobID"]) for each in state.job_table() if not each["IsDead"])


def _find_session() -> str:
    """Names this process in the cluster that it is in now; empty where it is in none."""
    return str(ray.get_runtime_context().get_worker_id()) if ray.is_initialized() else ""


def _get_actor(name: str) -> Any:
    return ray.get_actor(name, namespace=NAMESPACE)


class RaySite(_Peers):
    """The cluster as a program sees it that Ray runs in, or beside."""

    def __init__(self, *, owns_ray: bool = False) -> None:
        super().__init__()
        self._owns_ray = owns_ray
        self._directory: Any = None
        self.client = str(ray.get_runtime_context().get_job_id())

    def __repr__(self) -> str:
        return "Ray"

    @property
    def missing(self) -> Mapping[str, str]:
        """None: Ray has no nodes that it cannot ask."""
        return {}

    async def ask(self, verb: str, *args: Any) -> Any:
        """What the directory's call of that name gives. While it is restarted it is asked again."""
        self._need_ray()
        deadline = time.monotonic() + _DIRECTORY_LIMIT_S
        while True:
            try:
                if self._directory is None:
                    self._directory = await asyncio.to_thread(_start_directory)
                packed = await self._directory.call_packed.remote(_pack((verb, args)))
                went_well, answer = _unpack(packed)
                break
            except RayTaskError as error:
                raise InternalError(f"the directory: {error}") from error
            except RayActorError as error:
                if not isinstance(error, ActorUnavailableError):
                    self._directory = None
                if time.monotonic() >= deadline:
                    raise ClusterError(f"the directory does not come back: {error}") from error
                await asyncio.sleep(_AGAIN_S)  # Ray restarts it, and tells nobody when it is there
            except RayError as error:
                raise ClusterError(f"the directory: {error}") from error
        if went_well:
            return answer
        raise answer

    async def aclose(self) -> None:
        """What was started for us has ended."""
        if self._owns_ray and ray.is_initialized():
            await asyncio.to_thread(ray.shutdown)


def _start_directory() -> Any:
    """Beside the head, where that can be: who is cut off from it has no cluster, and the others have a directory."""
    kind = ray.remote(max_concurrency=1000, **_ACTOR)(DirectoryActor)
    heads = [each["NodeID"] for each in ray.nodes() if each["Alive"] and _HEAD in each["Resources"]]
    near = {"scheduling_strategy": NodeAffinitySchedulingStrategy(heads[0], soft=True)} if heads else {}
    return kind.options(name=_DIRECTORY, **near, **_NAMED).remote()


# By session: what a program joined before it shut Ray down is no more.
_joined: dict[str, RaySite] = {}


def join_site() -> RaySite:
    """The cluster that this process belongs to. Raises `Closed` where Ray does not run in it."""
    if not ray.is_initialized():
        raise Closed(
            "the cluster of this handle",
            "Ray does not run in this process",
            hint="join the cluster here first (vmfork.Cluster.connect), or use the handle in a task or actor of it",
        )
    session = _find_session()
    if session not in _joined:
        _joined.clear()
        _joined[session] = RaySite()
    return _joined[session]
