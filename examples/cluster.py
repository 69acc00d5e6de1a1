"""200 pieces of code that nobody trusts, each in a machine of its own, over three nodes; one is killed in the middle.

    pip install 'vmfork[ray]'
    python examples/cluster.py [COUNT]

The three nodes of Ray are on this host, each with folders of its own, so that the death of one can be shown. On real
hosts all that is left of it is `Cluster.connect()` and `square`.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

import ray
from ray.cluster_utils import Cluster as RayCluster

from vmfork.aio import Cluster, ClusterVM, NodeLost, Template, find_places
from vmfork.store import TemplateStore

AT_ONCE = 6


async def square(cluster: Cluster, number: int) -> int:
    """What the code gives, in a machine of its own. One that went with its node is asked for again."""
    while True:
        vm: ClusterVM = await cluster.fork("default", key=f"square-{number}", wait_s=600.0)
        try:
            async with vm:
                return int((await vm.run_code(f"{number} ** 2", check=True)).value or "")
        except NodeLost as error:
            print(f"again: {number} was on node {error.node}, which was lost")


async def run(nodes: RayCluster, count: int) -> None:
    slots, answers = asyncio.Semaphore(AT_ONCE), dict[int, int]()

    async def work(number: int) -> None:
        async with slots:
            answers[number] = await square(cluster, number)
        if len(answers) == count // 2:
            doomed = next(iter(nodes.worker_nodes))
            print(f"killing node {doomed.node_id[:12]}, with {len(answers)} of {count} done")
            await asyncio.to_thread(nodes.remove_node, doomed, allow_graceful=False)

    async with Cluster.connect() as cluster:
        while len((await cluster.status())["nodes"]) < 3:  # noqa: ASYNC110 - nobody tells that a node has come
            await asyncio.sleep(0.5)
        await cluster.prefetch("default")
        await asyncio.gather(*(work(number) for number in range(count)))
    right = sum(answers[number] == number**2 for number in range(count))
    print(f"{right} of {count} answers are right")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    asyncio.run(Template.ensure("default"))
    places, root = find_places(), Path(tempfile.mkdtemp(prefix="vmfork-cluster-", dir="/dev/shm"))
    nodes = RayCluster()
    try:
        for number in range(3):
            home, runtime = (
                (places.home, places.runtime) if not number else (root / f"home-{number}", root / f"{number}")
            )
            home.mkdir(mode=0o700, exist_ok=True, parents=True)
            runtime.mkdir(mode=0o700, exist_ok=True, parents=True)
            env = {"VMFORK_HOME": str(home), "VMFORK_RUNTIME_DIR": str(runtime)}
            nodes.add_node(env_vars=env, num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        asyncio.run(run(nodes, count))
    finally:
        ray.shutdown()
        nodes.shutdown()
        for number in (1, 2):
            TemplateStore(root / f"{number}" / "templates").clear()  # as root each is a mount
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
