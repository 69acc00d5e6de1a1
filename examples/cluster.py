"""200 functions that nobody trusts, each in a machine of its own, over three nodes; one is killed in the middle.

    pip install 'vmfork[ray]'
    python examples/cluster.py [COUNT]

The three nodes of Ray are on this host, each with folders of its own, so that the death of one can be shown. On real
hosts all that is left of it is `Cluster.connect()` and `call`. The template stays: vmfork template rm examples
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster as RayCluster

from vmfork.aio import Cluster, NodeLost, Recipe, Template, find_places
from vmfork.config import Places
from vmfork.machine.folder import sweep_vms
from vmfork.store import TemplateStore

NAME = "examples"
# An interpreter that every fork finds warm.
RECIPE = Recipe(warm_up=("#!python\nimport json, random, unittest",))
AT_ONCE = 2 * (os.cpu_count() or 1)


def source_of(number: int) -> str:
    """The function, as its author sent it."""
    return f"def solve(n):\n    return sum(int(digit) for digit in str(n ** 50))\nsolve({number})"


async def call(cluster: Cluster, number: int) -> int:
    """What the function gives, in a machine of its own. One that went with its node is asked for again."""
    while True:
        try:
            async with cluster.fork(NAME, key=f"solve-{number}", wait_s=600.0) as vm:
                return int((await vm.run_code(source_of(number), timeout_s=300.0, check=True)).value or "")
        except NodeLost as error:
            print(f"again: {number} was on node {error.node}, which was lost")


async def run(nodes: RayCluster, count: int) -> tuple[int, float]:
    """How many answers are right, and how long all took, in seconds."""
    slots, answers = asyncio.Semaphore(AT_ONCE), dict[int, int]()

    async def work(number: int) -> None:
        async with slots:
            answers[number] = await call(cluster, number)
        if len(answers) == count // 2:
            doomed = next(iter(nodes.worker_nodes))
            print(f"killing node {doomed.node_id[:12]}, with {len(answers)} of {count} done")
            await asyncio.to_thread(nodes.remove_node, doomed, allow_graceful=False)

    async with Cluster.connect() as cluster:
        while len((await cluster.status())["nodes"]) < 3:  # noqa: ASYNC110 - nobody tells that a node has come
            await asyncio.sleep(0.5)
        await cluster.prefetch(NAME)
        begun = time.monotonic()
        await asyncio.gather(*(work(number) for number in range(count)))
        took_s = time.monotonic() - begun
    return sum(answers[number] == sum(map(int, str(number**50))) for number in range(count)), took_s


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    asyncio.run(Template.ensure(NAME, recipe=RECIPE))
    root = Path(tempfile.mkdtemp(prefix="vmfork-cluster-", dir="/dev/shm"))
    hosts = [find_places(), *(Places(root / f"home-{number}", root / f"run-{number}") for number in (1, 2))]
    nodes = RayCluster()
    try:
        for places in hosts:
            for folder in (places.home, places.runtime):
                folder.mkdir(mode=0o700, exist_ok=True, parents=True)
            env = {"VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(places.runtime)}
            nodes.add_node(env_vars=env, num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        right, took_s = asyncio.run(run(nodes, count))
    finally:
        ray.shutdown()
        nodes.shutdown()
        for places in hosts[1:]:
            sweep_vms(places.vms)
            TemplateStore(places.templates).clear()  # as root each is a mount
        shutil.rmtree(root, ignore_errors=True)
    print(f"{right} of {count} answers are right, after {took_s:.0f} s")
    return 0 if right == count else 1


if __name__ == "__main__":
    sys.exit(main())
