"""A cluster of three nodes on this host: machines on all of them, code and files in them, and a node that is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from importlib import import_module

import pytest

import vmfork
from tests.cluster.conftest import NAME
from vmfork.aio import Cluster
from vmfork.errors import NodeLost, NoNode, TemplateNotFound, VMNotFound
from vmfork.machine.folder import list_records

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]


@pytest.fixture
async def cluster(nodes):
    async with Cluster.connect() as joined:
        await until(joined, lambda told: len(told["nodes"]) == len(nodes.rays))
        yield joined
        told = await joined.status()
        for machine in told["machines"]:
            with suppress(VMNotFound):  # it went with its node
                await (await joined.find(machine["id"])).aclose()
        left = {name: [each.id for each in list_records(nodes.places[name].vms)] for name in nodes.rays}
        assert left == {name: [] for name in nodes.rays}


async def until(cluster, is_so, *, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so(await cluster.status()):
        assert time.monotonic() < deadline, await cluster.status()
        await asyncio.sleep(0.5)


async def test_a_machine_does_what_one_of_this_host_does(cluster, tmp_path) -> None:
    async with cluster.fork(NAME, env={"WHO": "me"}, files={"/root/given": b"x"}) as vm:
        result = await vm.exec(["sh", "-c", "echo $WHO; cat /root/given; exit 3"])
        assert (result.stdout, result.exit_code) == ("me\nx", 3)
        assert (await vm.run_code("a = 20\na + 1")).value == "21"
        assert (await vm.run_code("a * 2")).value == "40"
        pieces = [event async for event in vm.stream(["sh", "-c", "echo one; echo two >&2; exit 4"])]
        assert [event.kind for event in pieces][-1] == "end"
        assert pieces[-1].result.exit_code == 4
        source = tmp_path / "source"
        (source / "deep").mkdir(parents=True)
        (source / "deep" / "file").write_bytes(os.urandom(9_000_000))
        await vm.put(source, "/root/there")
        await vm.get("/root/there", tmp_path / "back")
        assert (tmp_path / "back/deep/file").read_bytes() == (source / "deep/file").read_bytes()
        with pytest.raises(vmfork.ExecError):
            await vm.exec(["/no/such/program"])
        (fork,) = await vm.fork()
        assert fork.node == vm.node
        assert (await fork.exec(["cat", "/root/given"])).stdout == "x"
        await fork.aclose()
    with pytest.raises(VMNotFound):
        await vm.exec(["true"])


async def test_a_template_goes_to_all_and_machines_are_spread(cluster, nodes) -> None:
    await cluster.prefetch(NAME)
    await until(cluster, lambda told: len(told["templates"][0]["nodes"]) == len(nodes.rays))
    vms = await cluster.fork_many(NAME, 6, spread="node")
    assert set(Counter(vm.node for vm in vms).values()) == {2}
    names = await asyncio.gather(*(vm.exec(["cat", "/proc/sys/kernel/random/boot_id"]) for vm in vms))
    assert len({each.stdout for each in names}) == 6
    await asyncio.gather(*(vm.aclose() for vm in vms))


async def test_labels_names_and_what_nobody_has(cluster, nodes) -> None:
    last = [*nodes.rays][-1]
    async with cluster.fork(NAME, label="rack=2") as vm:
        assert vm.node == last
    with pytest.raises(NoNode, match="rack=9"):
        await cluster.fork(NAME, label="rack=9")
    with pytest.raises(TemplateNotFound):
        await cluster.fork("no-such-template")


async def test_the_same_key_from_eight_tasks_is_one_machine(cluster) -> None:
    ray = import_module("ray")

    def fork_it() -> str:
        with vmfork.Cluster.connect() as own:
            return own.fork(NAME, key="shared").id

    task = ray.remote(num_cpus=0)(fork_it)
    ids = await asyncio.gather(*(task.remote() for _ in range(8)))
    assert len({*ids}) == 1
    assert [each["id"] for each in (await cluster.status())["machines"]] == [ids[0]]


async def test_a_handle_works_in_any_task(cluster) -> None:
    ray = import_module("ray")

    def ask(vm) -> str:
        return vm.exec(["echo", "from a task"]).stdout

    vm = await asyncio.to_thread(lambda: vmfork.Cluster.connect().fork(NAME))
    assert await ray.remote(num_cpus=0)(ask).remote(vm) == "from a task\n"


async def test_the_process_of_a_node_is_killed(cluster, nodes) -> None:
    """What does not last is gone, what lasts is found again by the process that Ray starts; neither is there twice."""
    ray = import_module("ray")
    node = next(iter(nodes.rays))
    lasting = await cluster.fork(NAME, key="lasts", node=node, lasts=True, ttl_s=600.0)
    brief = await cluster.fork(NAME, key="brief", node=node)
    actor = ray.get_actor(f"vmfork-node:{node}", namespace="vmfork")
    os.kill(await actor.pid.remote(), signal.SIGKILL)
    again = await cluster.fork(NAME, key="lasts", node=node, lasts=True, ttl_s=600.0)
    assert again.id == lasting.id
    assert (await again.exec(["echo", "still"])).stdout == "still\n"
    with pytest.raises((VMNotFound, NodeLost)):
        await brief.exec(["true"])
    new = await cluster.fork(NAME, key="brief", node=node)
    assert new.id != brief.id
    assert len((await cluster.status())["machines"]) == 2


async def test_the_directory_is_killed_under_load(cluster) -> None:
    ray = import_module("ray")
    directory = ray.get_actor("vmfork-directory", namespace="vmfork")
    kept = await cluster.fork(NAME, key="kept")
    forks = [asyncio.ensure_future(cluster.fork(NAME)) for _ in range(6)]
    os.kill(await directory.pid.remote(), signal.SIGKILL)
    vms = await asyncio.gather(*forks)
    assert (await cluster.fork(NAME, key="kept")).id == kept.id
    found = {each["id"] for each in (await cluster.status())["machines"]}
    assert found == {kept.id, *(vm.id for vm in vms)}


async def test_a_killed_node_is_told_within_seconds_and_replaced(cluster, nodes) -> None:
    await cluster.prefetch(NAME)
    node = [*nodes.rays][-1]
    vm = await cluster.fork(NAME, node=node)
    running = asyncio.ensure_future(vm.exec(["sleep", "600"]))
    await until(cluster, lambda told: vm.id in {each["id"] for each in told["machines"]})
    nodes.kill(node)
    with pytest.raises(NodeLost) as lost:
        await running
    assert lost.value.machines == (vm.id,)
    vms = await cluster.fork_many(NAME, 4)
    assert node not in {each.node for each in vms}
    await until(cluster, lambda told: node not in {each["name"] for each in told["nodes"]})
