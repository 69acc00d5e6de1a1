"""Three nodes of Ray on this host, each with a home and a runtime folder of its own. Most tests share them."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from tests.rules.capabilities import need
from vmfork.aio import Cluster, Template
from vmfork.config import Places, VMConfig
from vmfork.errors import VMNotFound
from vmfork.machine.folder import list_records, sweep_vms
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "cluster"
# A fork of it is made for so long that something can happen meanwhile.
SLOW = "slow"
_SLOW_HOOK = "printf '#!/bin/sh\\nsleep 8\\n' > /etc/vmfork/after-fork.d/50-slow"


@dataclass
class Nodes:
    """The nodes, by their names in the cluster: Ray's own object, and where each has its things. The first is the head.

    One that is killed comes back by `revive`, under another name, with the folders that it had.
    """

    ray_cluster: Any
    root: Path
    places: dict[str, Places] = field(default_factory=dict)
    rays: dict[str, Any] = field(default_factory=dict)
    _given: dict[str, tuple[dict[str, str], dict[str, str]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.rays]

    def get_label(self, name: str, key: str) -> str:
        return self._given[name][1][key]

    def make_places(self, home: str = "") -> Places:
        runtime = Path(tempfile.mkdtemp(prefix="run-", dir=self.root))
        return Places(Path(home or tempfile.mkdtemp(prefix="home-", dir=self.root)), runtime)

    def add(self, places: Places, env: dict[str, str] | None = None, **labels: str) -> str:
        own = {
            "VMFORK_HOME": str(places.home),
            "VMFORK_RUNTIME_DIR": str(places.runtime),
            "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))),
            **(env or {}),
        }
        with _ended_where_half_made():
            node = self.ray_cluster.add_node(env_vars=own, labels=labels, num_cpus=1, include_dashboard=False)
        name = node.node_id[:12]
        self.places[name], self.rays[name], self._given[name] = places, node, (env or {}, labels)
        return name

    def kill(self, name: str) -> None:
        """As a host that fails: all processes of the node are killed, and what it held is gone."""
        self.ray_cluster.remove_node(self.rays.pop(name), allow_graceful=False)

    def revive(self, name: str) -> str:
        """The host of a node that was killed is there again."""
        env, labels = self._given[name]
        return self.add(self.places[name], env, **labels)

    def list_left(self) -> dict[str, list[str]]:
        """Machines that are there, by node, whatever the cluster says."""
        return {name: [each.id for each in list_records(self.places[name].vms)] for name in self.rays}

    def clear(self) -> None:
        """Of machines and templates of all nodes, which have ended, nothing is left."""
        with ExitStack() as stack:
            for places in self.places.values():
                stack.callback(TemplateStore(places.templates).clear)  # as root each is a mount
                stack.callback(sweep_vms, places.vms)


@contextmanager
def open_nodes() -> Iterator[Nodes]:
    """Nobody yet. Whoever was added has ended after the block, and nothing is left, however it ends."""
    ray, utils = import_module("ray"), import_module("ray.cluster_utils")
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="vmfork-cluster-", dir="/dev/shm"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        nodes = Nodes(utils.Cluster(), root)
        stack.callback(nodes.clear)
        stack.callback(nodes.ray_cluster.shutdown)
        stack.callback(ray.shutdown)
        yield nodes


@contextmanager
def _ended_where_half_made() -> Iterator[None]:
    """A node that fails while it starts has ended: Ray's cluster does not know it yet, and leaves it to our own end."""
    module, begun = import_module("ray._private.node"), []

    class Begun(module.Node):
        def __init__(self, *args: Any, **options: Any) -> None:
            begun.append(self)
            super().__init__(*args, **options)

    try:
        with patch.object(module, "Node", Begun):
            yield
    except BaseException:
        for node in begun:
            if hasattr(node, "all_processes"):  # else it came to none
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        raise


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """In place of the rule for all tests: Ray opens and closes connections of our process as it likes.

    Machines are looked at by the fixture that gives the cluster.
    """


@pytest.fixture(scope="session")
def nodes(instance):
    need("ray", found=True)
    with open_nodes() as made:
        # The first builds the image where it is missing; the others need none.
        for number in range(3):
            made.add(made.make_places(str(instance.home) if not number else ""), rack=str(number))
        first = made.places[made.names[0]]
        asyncio.run(Template.build(NAME, VMConfig(), places=first))
        hook = ["mkdir -p /etc/vmfork/after-fork.d", _SLOW_HOOK, "chmod +x /etc/vmfork/after-fork.d/50-slow"]
        asyncio.run(Template.build(SLOW, VMConfig(), warm_up=hook, places=first))
        import_module("ray").init(address=made.ray_cluster.address, namespace="vmfork", log_to_driver=False)
        yield made


@pytest.fixture
async def cluster(nodes):
    """All nodes are there and ready; after the test no machine is left on any."""
    async with Cluster.connect() as joined:
        await until(
            joined, lambda told: {each["name"] for each in told["nodes"] if each["state"] == "ready"} == {*nodes.rays}
        )
        yield joined
        told = await joined.status()
        for machine in told["machines"]:
            with suppress(VMNotFound):  # it went with its node
                await (await joined.find(machine["id"])).aclose()
        assert nodes.list_left() == {name: [] for name in nodes.rays}


async def until(cluster, is_so, *, limit_s: float = 180.0):
    """What the cluster tells once it is so."""
    deadline = time.monotonic() + limit_s
    while not is_so(told := await cluster.status()):
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.5)
    return told


def get_node(told, name):
    return next(each for each in told["nodes"] if each["name"] == name)


async def find_pid(node: str) -> int:
    """The process of the node's actor."""
    actor = import_module("ray").get_actor(f"vmfork-node:{node}", namespace="vmfork")
    return await actor.pid.remote()
