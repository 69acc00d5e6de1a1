"""Who joins a cluster that is not there, or uses a handle where its cluster is not, is told what to do."""

from __future__ import annotations

import asyncio
import importlib
import pickle
import socket
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vmfork.aio import Cluster, ClusterVM
from vmfork.cluster.terms import Machine
from vmfork.errors import Closed, ConfigError, HostError

_ERRORS = (
    "ActorUnavailableError", "ActorUnschedulableError", "NodeDiedError", "ObjectLostError", "RayActorError",
    "RayError", "RayTaskError",
)  # fmt: skip


OURS = ("vmfork.cluster.ray_site", "vmfork.cluster.ray_joining")


class Ray:
    """In the place of Ray's modules: what joining touches of them. `init` raises what a test says, or waits for it."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.addresses: list[str] = []
        self.found, self.here = "", "127.0.0.1:6379"
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.has_begun, self.has_shut_down = threading.Event(), threading.Event()

    def init(self, *, address: str, **_: Any) -> None:
        self.addresses.append(address)
        self.goes_on.wait()
        if self.error is not None:
            raise self.error
        self.has_begun.set()

    def shutdown(self) -> None:
        self.has_shut_down.set()

    def is_initialized(self) -> bool:
        return self.has_begun.is_set() and not self.has_shut_down.is_set()

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address=self.here, get_job_id=lambda: "1", get_worker_id=lambda: "w")

    def find(self, address: str) -> str:
        """As Ray looks for it: what was started on this host for `auto`."""
        if address == "auto" and not self.found:
            raise ConnectionError("Could not find any running Ray instance.")
        if address != "auto" and ":" not in address:
            raise ValueError(f"Invalid address format: {address}")
        return self.found if address == "auto" else address


@pytest.fixture
def ray(monkeypatch) -> Ray:
    found = Ray()
    module, state, errors = ModuleType("ray"), ModuleType("ray._private.state"), ModuleType("ray.exceptions")
    module.init, module.shutdown, module.cloudpickle = found.init, found.shutdown, pickle
    module.is_initialized, module.get_runtime_context = found.is_initialized, found.get_runtime_context
    state.state = None
    for name in _ERRORS:
        setattr(errors, name, type(name, (Exception,), {}))
    strategies, services = ModuleType("ray.util.scheduling_strategies"), ModuleType("ray._private.services")
    services.canonicalize_bootstrap_address = found.find
    strategies.NodeAffinitySchedulingStrategy = None
    private = ModuleType("ray._private")
    private.services = services
    for each in (module, private, services, state, errors, ModuleType("ray.util"), strategies):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield found
    for name in OURS:
        sys.modules.pop(name, None)  # it is of what was here in the place of Ray


@pytest.fixture
def no_ray(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)


def handle(node: str) -> ClusterVM:
    """As it comes to a process that it was passed to."""
    return pickle.loads(pickle.dumps(ClusterVM(Machine(id="1", node=node, template="py"))))


@pytest.fixture
def listening() -> str:
    """An address where somebody listens, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


async def test_where_nobody_answers_that_is_told_at_once_with_what_would_do(ray, refusing) -> None:
    """Ray itself tries for a quarter of an hour."""
    for found, address, says in (
        ("", "auto", "any running Ray instance"),
        (refusing, "auto", "nobody answers there"),
        ("", refusing, "nobody answers there"),
        ("", "127.0.0.1:65536", "nobody answers there"),
    ):
        ray.found = found
        with pytest.raises(HostError, match=f"no Ray cluster runs at {address}: .*{says}") as refused:
            await Cluster.connect(address)
        assert "ray start --head" in refused.value.hint
        assert "Cluster.local()" in refused.value.hint
    assert ray.addresses == []


async def test_what_is_no_address_is_refused(ray) -> None:
    for address in ("nowhere", "first.example:port", "", "ray://127.0.0.1:10001", "a..b:6379", f"{64 * 'a'}:1"):
        with pytest.raises(ConfigError) as refused:
            await Cluster.connect(address)
        assert (refused.value.value, "HOST:PORT" in refused.value.hint) == (address, True)
    assert ray.addresses == []


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Failed to connect to Ray cluster."), RuntimeError("Failed to connect to GCS within 5 seconds.")],
)
async def test_who_is_let_in_by_nobody_is_told_of_the_token(ray, error, listening) -> None:
    ray.error = error
    with pytest.raises(HostError, match=f"no Ray cluster runs at {listening}") as refused:
        await Cluster.connect(listening)
    assert "RAY_AUTH_MODE=token" in refused.value.hint


@pytest.mark.parametrize("how", ["in time", "at once"])
async def test_what_answers_and_is_no_cluster_is_left(ray, listening, monkeypatch, how) -> None:
    """By whoever is told to end at once. A cluster that is joined after all is left again."""
    ray.goes_on.clear()
    if how == "in time":
        ours = importlib.import_module("vmfork.cluster.ray_joining")
        monkeypatch.setattr(ours, "_JOIN_LIMIT_S", 0.2)
        with pytest.raises(HostError, match=r"let nobody in for 0\.2 s"):
            await Cluster.connect(listening)
    else:
        joining = asyncio.ensure_future(Cluster.connect(listening))
        while not ray.addresses:
            await asyncio.sleep(0.01)
        joining.cancel()
        async with asyncio.timeout(30):
            with pytest.raises(asyncio.CancelledError):
                await joining
    assert ray.addresses == [listening]
    assert not ray.has_shut_down.is_set()
    ray.goes_on.set()
    assert await asyncio.to_thread(ray.has_shut_down.wait, 30)


async def test_one_thread_of_a_process_joins_at_a_time(ray, listening, monkeypatch) -> None:
    """Who waits in vain behind another is told so, and not of what answers."""
    ray.goes_on.clear()
    first = asyncio.ensure_future(Cluster.connect(listening))
    while not ray.addresses:
        await asyncio.sleep(0.01)
    monkeypatch.setattr(importlib.import_module("vmfork.cluster.ray_joining"), "_TURN_LIMIT_S", 0.2)
    with pytest.raises(HostError, match="another thread of this process is joining"):
        await Cluster.connect(listening)
    ray.goes_on.set()
    await (await first).aclose()
    assert ray.has_shut_down.is_set()


async def test_who_gives_up_as_it_is_joined_leaves_it(ray, listening, monkeypatch) -> None:
    ray.goes_on.clear()
    joining = asyncio.ensure_future(Cluster.connect(listening))
    while not ray.addresses:
        await asyncio.sleep(0.01)
    ray.goes_on.set()
    assert ray.has_begun.wait(30)  # the event loop stands still
    time.sleep(0.2)
    joining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await joining
    assert await asyncio.to_thread(ray.has_shut_down.wait, 30)


async def test_one_that_is_started_here_has_ended_when_whoever_began_it_gave_up(ray) -> None:
    ray.goes_on.clear()
    starting = asyncio.ensure_future(Cluster.local())
    while not ray.addresses:
        await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.sleep(0.05)
    assert not starting.done()
    ray.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ray.has_shut_down.is_set()


async def test_a_cluster_of_another_python_is_told_by_both_versions(ray, listening) -> None:
    ray.error = RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.8.1\nThis process 3.11.7")
    with pytest.raises(HostError, match=r"not for this Python: .*3\.8\.1; This process 3\.11\.7") as refused:
        await Cluster.connect(listening)
    assert "same versions of Python and Ray" in refused.value.hint


async def test_without_ray_the_extra_is_named(no_ray) -> None:
    for join in (Cluster.connect, Cluster.local, lambda: handle("0123456789ab").exec(["true"])):
        with pytest.raises(HostError, match="needs Ray") as refused:
            await join()
        assert "vmfork[ray]" in refused.value.hint


async def test_a_handle_where_its_cluster_is_not_says_so(ray) -> None:
    with pytest.raises(Closed, match="Ray does not run in this process") as refused:
        await handle("0123456789ab").exec(["true"])
    assert "Cluster.connect" in refused.value.hint


async def test_a_handle_of_a_list_that_is_not_open_here_says_so_with_or_without_ray(no_ray) -> None:
    with pytest.raises(Closed, match=r"no list open that names 127\.0\.0\.1:7300") as refused:
        await handle("127.0.0.1:7300").exec(["true"])
    assert "Cluster.at" in refused.value.hint


async def test_another_cluster_than_this_process_is_in_is_refused(ray) -> None:
    ray.has_begun.set()
    for join in (lambda: Cluster.connect("127.0.0.2:6379"), lambda: Cluster.connect("127.0.0.1:6380"), Cluster.local):
        with pytest.raises(HostError, match=r"in the Ray cluster at 127\.0\.0\.1:6379 already") as refused:
            await join()
        assert "ray.shutdown()" in refused.value.hint
    for address in ("auto", "127.0.0.1:6379", "localhost:6379"):
        await (await Cluster.connect(address)).aclose()
    assert ray.addresses == []
    assert not ray.has_shut_down.is_set()


async def test_of_two_who_join_one_at_once_one_leaves_it(ray, listening) -> None:
    ray.goes_on.clear()
    ray.here = listening
    first = asyncio.ensure_future(Cluster.connect(listening))
    while not ray.addresses:
        await asyncio.sleep(0.01)
    second = asyncio.ensure_future(Cluster.connect(listening))
    await asyncio.sleep(0.1)  # it waits behind the first
    ray.goes_on.set()
    for cluster, has_ended in ((await second, False), (await first, True)):
        await cluster.aclose()
        assert ray.has_shut_down.is_set() is has_ended
    assert len(ray.addresses) == 1
