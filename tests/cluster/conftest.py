"""Three nodes of Ray on this host, each with a home and a runtime folder of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.rules.capabilities import need
from vmfork.aio import Template
from vmfork.config import Places, VMConfig
from vmfork.machine.folder import sweep_vms
from vmfork.store import TemplateStore

NAME = "cluster"


@dataclass
class Nodes:
    """The nodes, by their names in the cluster: Ray's own object, and where each has its things."""

    ray_cluster: Any
    places: dict[str, Places] = field(default_factory=dict)
    rays: dict[str, Any] = field(default_factory=dict)

    def add(self, home: str, root: Path, number: int, **labels: str) -> str:
        runtime = root / f"run-{number}"
        runtime.mkdir(mode=0o700)
        places = Places(Path(home), runtime)
        env = {"VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(runtime), "PYTHONPATH": os.getcwd()}
        node = self.ray_cluster.add_node(env_vars=env, labels={"rack": str(number), **labels}, num_cpus=1)
        name = node.node_id[:12]
        self.places[name], self.rays[name] = places, node
        return name

    def kill(self, name: str) -> None:
        """As a host that fails: all processes of the node are killed, and what it held is gone."""
        self.ray_cluster.remove_node(self.rays.pop(name), allow_graceful=False)


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """In place of the rule for all tests: Ray opens and closes connections of our process as it likes.

    Machines are looked at by the fixture that gives the cluster.
    """


@pytest.fixture(scope="session")
def nodes(instance):
    need("ray", found=True)
    ray, utils = import_module("ray"), import_module("ray.cluster_utils")
    root = Path(tempfile.mkdtemp(prefix="vmfork-cluster-", dir="/dev/shm"))
    cluster = utils.Cluster()
    made = Nodes(cluster)
    try:
        # The first builds the image where it is missing; the others need none.
        homes = [instance.home, *(Path(tempfile.mkdtemp(prefix="home-", dir=root)) for _ in range(2))]
        names = [made.add(str(home), root, number) for number, home in enumerate(homes)]
        asyncio.run(Template.build(NAME, VMConfig(), places=made.places[names[0]]))
        ray.init(address=cluster.address, namespace="vmfork", log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        cluster.shutdown()
        for places in made.places.values():
            sweep_vms(places.vms)
            TemplateStore(places.templates).clear()  # as root each is a mount
        shutil.rmtree(root, ignore_errors=True)
