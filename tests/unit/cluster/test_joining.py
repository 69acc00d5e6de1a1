"""Who joins a cluster that is not there, or uses a handle where its cluster is not, is told what to do."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
from typing import Any

import pytest

from vmfork.aio import Cluster, ClusterVM
from vmfork.cluster.terms import Machine
from vmfork.errors import Closed, HostError

_ERRORS = (
    "ActorUnavailableError", "ActorUnschedulableError", "NodeDiedError", "ObjectLostError", "RayActorError",
    "RayError", "RayTaskError",
)  # fmt: skip


class Ray:
    """In the place of Ray's modules: what joining touches of them. `init` raises what a test says."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.addresses: list[str] = []

    def init(self, *, address: str, **_: Any) -> None:
        self.addresses.append(address)
        if self.error is not None:
            raise self.error


@pytest.fixture
def ray(monkeypatch) -> Ray:
    found = Ray()
    module, state, errors = ModuleType("ray"), ModuleType("ray._private.state"), ModuleType("ray.exceptions")
    module.init, module.is_initialized, module.cloudpickle = found.init, lambda: False, pickle
    state.state = None
    for name in _ERRORS:
        setattr(errors, name, type(name, (Exception,), {}))
    strategies = ModuleType("ray.util.scheduling_strategies")
    strategies.NodeAffinitySchedulingStrategy = None
    for each in (module, ModuleType("ray._private"), state, errors, ModuleType("ray.util"), strategies):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    monkeypatch.delitem(sys.modules, "vmfork.cluster.ray_site", raising=False)
    yield found
    sys.modules.pop("vmfork.cluster.ray_site", None)  # it is of what was here in the place of Ray


@pytest.fixture
def no_ray(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vmfork.cluster.ray_site", raising=False)


def handle(node: str) -> ClusterVM:
    """As it comes to a process that it was passed to."""
    return pickle.loads(pickle.dumps(ClusterVM(Machine(id="1", node=node, template="py"))))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("Could not find any running Ray instance."), "any running Ray instance"),
        (RuntimeError("Failed to connect to GCS at address 127.0.0.1:1 within 5 seconds."), "nobody answers there"),
    ],
)
async def test_where_no_cluster_runs_that_is_told_with_what_would_do(ray, error, says) -> None:
    ray.error = error
    for address in ("auto", "127.0.0.1:1"):
        with pytest.raises(HostError, match=f"no Ray cluster runs at {address}: .*{says}") as refused:
            await Cluster.connect(address)
        assert "ray start --head" in refused.value.hint
        assert "Cluster.local()" in refused.value.hint
    assert ray.addresses == ["auto", "127.0.0.1:1"]


async def test_a_cluster_of_another_python_is_told_by_both_versions(ray) -> None:
    ray.error = RuntimeError("Version mismatch: The cluster was started with:\n    Python: 3.8.1\nThis process 3.11.7")
    with pytest.raises(HostError, match=r"not for this Python: .*3\.8\.1; This process 3\.11\.7") as refused:
        await Cluster.connect()
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
