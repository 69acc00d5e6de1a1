"""Three nodes on this host, of Ray or of a list, with two templates on the first. Most tests share them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from tests.cluster.nodes import open_listed_nodes, open_ray_nodes
from tests.rules.capabilities import need
from vmfork.aio import Template
from vmfork.config import VMConfig
from vmfork.errors import VMNotFound

if TYPE_CHECKING:
    from tests.cluster.nodes import Nodes
    from vmfork.config import Places

NAME = "cluster"
# A fork of it is made for so long that something can happen meanwhile.
SLOW = "slow"
_SLOW_HOOK = "printf '#!/bin/sh\\nsleep 8\\n' > /etc/vmfork/after-fork.d/50-slow"


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """In place of the rule for all tests: Ray opens and closes connections of our process as it likes.

    Machines are looked at by the fixture that gives the cluster.
    """


def _fill(nodes: Nodes, instance: Places) -> None:
    """Three nodes, of which the first has the templates."""
    # The first has the image; the others need none.
    for number in range(3):
        nodes.add(nodes.make_places(str(instance.home) if not number else ""), rack=str(number))
    first = nodes.places[nodes.names[0]]
    asyncio.run(Template.build(NAME, VMConfig(), places=first))
    hook = ["mkdir -p /etc/vmfork/after-fork.d", _SLOW_HOOK, "chmod +x /etc/vmfork/after-fork.d/50-slow"]
    asyncio.run(Template.build(SLOW, VMConfig(), warm_up=hook, places=first))


@pytest.fixture(scope="session")
def ray_nodes(instance):
    need("ray", found=True)
    with open_ray_nodes() as made:
        _fill(made, instance)
        import_module("ray").init(address=made.ray_cluster.address, namespace="vmfork", log_to_driver=False)
        yield made


@pytest.fixture(scope="session")
def listed_nodes(instance, tmp_path_factory):
    with open_listed_nodes(tmp_path_factory.mktemp("servers")) as made:
        _fill(made, instance)
        yield made


@pytest.fixture
def nodes(request) -> Nodes:
    """Of Ray, or what the test says: it is given both by `over_both`."""
    made: Nodes = request.getfixturevalue(f"{getattr(request, 'param', 'ray')}_nodes")
    return made


over_both = pytest.mark.parametrize(
    "nodes", [pytest.param("ray", marks=pytest.mark.needs("ray")), "listed"], indirect=True
)


@pytest.fixture
async def cluster(nodes):
    """All nodes are there and ready; after the test no machine is left on any."""
    async with await nodes.join() as cluster:
        await until(
            cluster, lambda told: {each["name"] for each in told["nodes"] if each["state"] == "ready"} == {*nodes.names}
        )
        yield cluster
        told = await cluster.status()
        for machine in told["machines"]:
            with suppress(VMNotFound):  # it went with its node
                await (await cluster.find(machine["id"])).aclose()
        assert nodes.list_left() == {name: [] for name in nodes.names}


async def until(cluster, is_so, *, limit_s: float = 180.0):
    """What the cluster tells once it is so."""
    deadline = time.monotonic() + limit_s
    while not is_so(told := await cluster.status()):
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.5)
    return told


def get_node(told, name):
    return next(each for each in told["nodes"] if each["name"] == name)
