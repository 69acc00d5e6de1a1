"""Nodes on this host, each with a home and a runtime folder of its own: of Ray, or servers of a list."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tests.vm.served import Servers, make_access
from vmfork.aio import Cluster
from vmfork.config import Places
from vmfork.machine.folder import list_records, sweep_vms
from vmfork.store import TemplateStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Nodes:
    """What nodes have in common: `places`, by their names in the cluster, and with what they were started.

    One that is killed comes back by `revive`, with the folders that it had, under the name that this gives.
    """

    root: Path
    places: dict[str, Places] = field(default_factory=dict)
    _given: dict[str, tuple[dict[str, str], dict[str, str]]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Those that run. The first is there as long as any."""
        raise NotImplementedError

    @property
    def joining(self) -> str:
        """What a program of its own says, after `import vmfork`, to have the cluster."""
        raise NotImplementedError

    def kill(self, name: str) -> None:
        """As a host that fails: all processes of the node are killed, and what it held is gone."""
        raise NotImplementedError

    async def find_pid(self, name: str) -> int:
        """The process that holds the node's machines."""
        raise NotImplementedError

    async def restart(self, name: str) -> None:
        """The process that holds the node's machines is killed, and another is in its place, or on its way there."""
        raise NotImplementedError

    async def join(self) -> Cluster:
        """As a program does that begins now."""
        raise NotImplementedError

    def _start(self, places: Places, env: dict[str, str], labels: dict[str, str], name: str) -> str:
        """The name of one that runs now, if it can be that one."""
        raise NotImplementedError

    def add(self, places: Places, env: dict[str, str] | None = None, **labels: str) -> str:
        """The name of one more, whose process has these variables too."""
        return self._add(places, env or {}, labels)

    def revive(self, name: str) -> str:
        """The host of a node that was killed is there again."""
        return self._add(self.places[name], *self._given[name], name)

    def _add(self, places: Places, env: dict[str, str], labels: dict[str, str], name: str = "") -> str:
        path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
        name = self._start(places, {"PYTHONPATH": path, **env}, labels, name)
        self.places[name], self._given[name] = places, (env, labels)
        return name

    def get_label(self, name: str, key: str) -> str:
        return self._given[name][1][key]

    def make_places(self, home: str = "") -> Places:
        runtime = Path(tempfile.mkdtemp(prefix="run-", dir=self.root))
        return Places(Path(home or tempfile.mkdtemp(prefix="home-", dir=self.root)), runtime)

    def list_left(self) -> dict[str, list[str]]:
        """Machines that are there, by node, whatever the cluster says."""
        return {name: [each.id for each in list_records(self.places[name].vms)] for name in self.names}

    def clear(self) -> None:
        """Of machines and templates of all nodes, which have ended, nothing is left."""
        with ExitStack() as stack:
            for places in self.places.values():
                stack.callback(TemplateStore(places.templates).clear)  # as root each is a mount
                stack.callback(sweep_vms, places.vms)


@dataclass(kw_only=True)
class RayNodes(Nodes):
    """Those of a cluster of Ray. The first is its head."""

    ray_cluster: Any
    rays: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.rays]

    @property
    def joining(self) -> str:
        return f"vmfork.Cluster.connect({self.ray_cluster.address!r})"

    def kill(self, name: str) -> None:
        self.ray_cluster.remove_node(self.rays.pop(name), allow_graceful=False)

    def stop(self, name: str) -> None:
        """As `ray stop` on that host: its processes are asked to end."""
        self.ray_cluster.remove_node(self.rays.pop(name))

    async def find_pid(self, name: str) -> int:
        actor = import_module("ray").get_actor(f"vmfork-node:{name}", namespace="vmfork")
        pid: int = await actor.pid.remote()
        return pid

    async def restart(self, name: str) -> None:
        os.kill(await self.find_pid(name), signal.SIGKILL)  # Ray starts it anew

    async def join(self) -> Cluster:
        return await Cluster.connect()

    def _start(self, places: Places, env: dict[str, str], labels: dict[str, str], name: str) -> str:
        own = {"VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(places.runtime), **env}
        with _ended_where_half_made():
            node = self.ray_cluster.add_node(env_vars=own, labels=labels, num_cpus=1, include_dashboard=False)
        self.rays[name := node.node_id[:12]] = node
        return name


@dataclass(kw_only=True)
class ListedNodes(Nodes):
    """Servers of a list, whom TLS lets in. Who joins has the list as it is then."""

    servers: Servers
    access: dict[str, str]

    @property
    def names(self) -> list[str]:
        return [name for name in self.places if name in self.servers.processes]

    @property
    def joining(self) -> str:
        return f"vmfork.Cluster.at({self.names!r}, **{self.access!r})"

    def kill(self, name: str) -> None:
        self.servers.kill(name)

    async def find_pid(self, name: str) -> int:
        return self.servers.processes[name].pid

    async def restart(self, name: str) -> None:
        self.kill(name)
        self.revive(name)

    async def join(self) -> Cluster:
        return await Cluster.at(self.names, **self.access)

    def _start(self, places: Places, env: dict[str, str], labels: dict[str, str], name: str) -> str:
        return self.servers.start(places, listen=name or "127.0.0.1:0", labels=labels, more_env=env)

    def end(self) -> None:
        """All have ended, in order where they let that."""
        for name in self.names:
            self.servers.processes[name].send_signal(signal.SIGCONT)
            self.servers.end(name)


@contextmanager
def _opened(prefix: str) -> Iterator[tuple[ExitStack, Path]]:
    with ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix=prefix, dir="/dev/shm"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        yield stack, root


@contextmanager
def open_ray_nodes() -> Iterator[RayNodes]:
    """Nobody yet. Whoever was added has ended after the block, and nothing is left, however it ends."""
    ray, utils = import_module("ray"), import_module("ray.cluster_utils")
    with _opened("vmfork-cluster-") as (stack, root):
        nodes = RayNodes(root, ray_cluster=utils.Cluster())
        stack.callback(nodes.clear)
        stack.callback(nodes.ray_cluster.shutdown)
        stack.callback(ray.shutdown)
        yield nodes


@contextmanager
def open_listed_nodes(folder: Path) -> Iterator[ListedNodes]:
    """As `open_ray_nodes`. What they say of themselves is in `folder`."""
    access, options = make_access(folder)
    with _opened("vmfork-listed-") as (stack, root):
        nodes = ListedNodes(root, servers=Servers(options, folder), access=access)
        stack.callback(nodes.clear)
        stack.callback(nodes.end)
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
