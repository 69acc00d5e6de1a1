"""A cluster of three nodes on this host: machines on all of them, code and files in them, keys, labels, drains."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

import vmfork
from tests.cluster.conftest import NAME, SLOW, get_node, over_both, until
from vmfork.aio import Template
from vmfork.cluster.transfer import Packed
from vmfork.config import Places, VMConfig
from vmfork.errors import DeadlineExceeded, HostError, NoNode, TemplateNotFound, VMNotFound
from vmfork.machine.folder import list_records
from vmfork.store import TemplateStore
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]

BOOT_ID = ["cat", "/proc/sys/kernel/random/boot_id"]


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


@pytest.mark.needs("root")
async def test_machines_are_no_nicer_than_ray_itself(cluster, nodes) -> None:
    """Its workers are by 15, which on a busy host leaves a guest a fraction of what others get."""
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    async with cluster.fork(NAME) as vm:
        assert os.getpriority(os.PRIO_PROCESS, await nodes.find_pid(vm.node)) == mine
        (record,) = list_records(nodes.places[vm.node].vms)
        assert os.getpriority(os.PRIO_PROCESS, record.process.pid) == mine


async def test_nodes_and_machines_take_none_of_rays_processors(cluster) -> None:
    ray, all_of = import_module("ray"), {"CPU": 3.0}
    async with cluster.fork(NAME), asyncio.timeout(60):
        assert ray.cluster_resources().items() >= all_of.items()
        # Ray tells what is free a moment later, and tasks of the test before may have just ended.
        while not ray.available_resources().items() >= all_of.items():
            await asyncio.sleep(0.5)


async def test_a_template_goes_to_all_and_machines_are_spread(cluster, nodes) -> None:
    await cluster.prefetch(NAME)
    held = {NAME: {*nodes.names}}
    await until(
        cluster, lambda told: held.items() <= {each["name"]: {*each["nodes"]} for each in told["templates"]}.items()
    )
    vms = await cluster.fork_many(NAME, 6, spread="node")
    assert set(Counter(vm.node for vm in vms).values()) == {2}
    names = await asyncio.gather(*(vm.exec(BOOT_ID) for vm in vms))
    assert len({each.stdout for each in names}) == 6
    await asyncio.gather(*(vm.aclose() for vm in vms))


@over_both
async def test_nodes_that_want_one_template_at_once_are_each_sent_it_once(cluster, nodes) -> None:
    first, *others = nodes.names
    own = nodes.places[first]
    template = await Template.build("wanted", VMConfig(), places=own)
    try:
        before = await until(cluster, lambda told: "wanted" in {each["name"] for each in told["templates"]})
        async with await nodes.join() as another:  # who has another directory, where there is none for all
            asking = (who.fork("wanted", node=node) for node in others for who in (cluster, another))
            vms = await asyncio.gather(*asking)
            assert Counter(vm.node for vm in vms) == dict.fromkeys(others, 2)
            await asyncio.gather(*(vm.aclose() for vm in vms))
        told = await cluster.status()
        (held,) = (each for each in (await cluster._site.call(first, "report")).held if each.name == "wanted")
        # What others that were killed meanwhile had packed on these nodes' disks is not sent.
        missing = [
            size
            for node in others
            for layer, size in held.wanted.layers.items()
            if Packed(nodes.places[node].home).find_layer(layer) is None
        ]

        def count(name: str, node: str) -> float:
            return get_node(told, node)["counts"][name] - get_node(before, node)["counts"][name]

        assert [count("pulls", node) for node in others] == [1, 1]
        assert sum(count("sent_bytes", node) for node in nodes.names) == sum(missing) > held.wanted.size_bytes
    finally:
        await template.remove()
        for node in others:
            await (await Template.open("wanted", places=nodes.places[node])).remove()


async def test_a_template_that_comes_over_the_budget_of_its_node_takes_the_place_of_the_one_used_least(
    cluster, nodes
) -> None:
    """Of those that came from others: not one that a machine is a fork of, and none where nothing may go."""
    store = TemplateStore(nodes.places[nodes.names[0]].templates)
    holding = {name: -(-store.read_manifest(name).memory_allocated_bytes // MIB) for name in (NAME, SLOW)}
    full = -(-store.read_manifest(NAME).memory_bytes // MIB)
    # Room for one that is there, and for another that comes, which is counted in full.
    budget_mib = max(holding.values()) + full
    assert budget_mib < sum(holding.values()) + full
    node = nodes.add(nodes.make_places(), {"VMFORK_FACTORY_BUDGET_MIB": str(budget_mib)})
    there = TemplateStore(nodes.places[node].templates)
    try:
        told = await until(cluster, lambda told: node in {each["name"] for each in told["nodes"]})
        digest = next(each["digest"] for each in told["templates"] if each["name"] == NAME)
        for name in (NAME, SLOW):
            await cluster.prefetch(name, nodes=[node])
        assert there.list_names() == sorted((NAME, SLOW))
        there.note_use(NAME)
        await cluster._site.call(node, "pull", "third", digest, [nodes.names[0]])
        assert there.list_names() == sorted((NAME, "third"))
        async with cluster.fork(NAME, node=node) as vm:
            there.note_use("third")
            await cluster.prefetch(SLOW, nodes=[node])
            assert there.list_names() == sorted((NAME, SLOW))
            assert (await vm.exec(["echo", "still"])).stdout == "still\n"
            async with cluster.fork(SLOW, node=node):
                with pytest.raises(HostError, match=f"{NAME}.*{SLOW}|{SLOW}.*{NAME}"):
                    await cluster._site.call(node, "pull", "third", digest, [nodes.names[0]])
            assert there.list_names() == sorted((NAME, SLOW))
        assert {NAME, SLOW} <= {*store.list_names()}
    finally:
        nodes.kill(node)
        await until(cluster, lambda told: {each["name"] for each in told["nodes"]} == {*nodes.names})


async def test_a_hundred_machines_of_eight_tasks_are_all_there_and_none_is_two(cluster, nodes) -> None:
    ray = import_module("ray")
    await cluster.prefetch(NAME)

    def work(task: int, count: int) -> list[tuple[str, str, str]]:
        seen = []
        with vmfork.Cluster.connect() as own:
            for number in range(count):
                with own.fork(NAME, key=f"task-{task}-{number}", wait_s=600.0) as vm:
                    seen.append((vm.id, vm.node, vm.exec(BOOT_ID, check=True).stdout))
        return seen

    task = ray.remote(num_cpus=0)(work)
    counts = [13] * 4 + [12] * 4
    seen = [each for part in await asyncio.gather(*(task.remote(*each) for each in enumerate(counts))) for each in part]
    assert len({vm for vm, _, _ in seen}) == len({boot for _, _, boot in seen}) == 100
    assert {node for _, node, _ in seen} == {*nodes.names}
    assert (await cluster.status())["machines"] == []


async def test_a_task_that_ray_tries_again_finds_the_machine_that_it_had(cluster, tmp_path) -> None:
    ray = import_module("ray")
    notes = tmp_path / "ids"

    def work() -> str:
        vm = vmfork.Cluster.connect().fork(NAME, key="tried")
        is_first = not notes.exists()
        notes.write_text(notes.read_text() + vm.id if notes.exists() else vm.id)
        if is_first:
            os.kill(os.getpid(), 9)
        return vm.id

    again = await ray.remote(num_cpus=0, max_retries=3)(work).remote()
    assert notes.read_text() == again * 2
    assert [each["id"] for each in (await cluster.status())["machines"]] == [again]


async def test_labels_names_and_what_nobody_has(cluster, nodes) -> None:
    last = nodes.names[-1]
    async with cluster.fork(NAME, label=f"rack={nodes.get_label(last, 'rack')}") as vm:
        assert vm.node == last
    with pytest.raises(NoNode, match="rack=9"):
        await cluster.fork(NAME, label="rack=9")
    with pytest.raises(TemplateNotFound):
        await cluster.fork("no-such-template")
    with pytest.raises(NoNode, match="60000 machines were asked for"):
        await cluster.fork_many(NAME, 60_000)
    assert (await cluster.status())["machines"] == []


async def test_the_same_key_from_eight_tasks_is_one_machine(cluster) -> None:
    ray = import_module("ray")

    def fork_it() -> str:
        with vmfork.Cluster.connect() as own:
            return own.fork(NAME, key="shared").id

    task = ray.remote(num_cpus=0)(fork_it)
    ids = await asyncio.gather(*(task.remote() for _ in range(8)))
    assert len({*ids}) == 1
    assert [each["id"] for each in (await cluster.status())["machines"]] == [ids[0]]


@asynccontextmanager
async def connected() -> AsyncIterator[vmfork.Cluster]:
    """The blocking form, whose handles are for those who block."""
    own = await asyncio.to_thread(vmfork.Cluster.connect)
    try:
        yield own
    finally:
        await asyncio.to_thread(own.close)


async def test_a_handle_works_in_any_task(cluster) -> None:
    ray = import_module("ray")

    def ask(vm) -> str:
        return vm.exec(["echo", "from a task"]).stdout

    async with connected() as own:
        vm = await asyncio.to_thread(own.fork, NAME)
        assert await ray.remote(num_cpus=0)(ask).remote(vm) == "from a task\n"


async def test_a_handle_works_in_an_actor_that_keeps_it_and_one_that_an_actor_made_works_here(cluster) -> None:
    ray = import_module("ray")

    class Keeper:
        def __init__(self, vm) -> None:
            self.vm = vm

        def say(self, text: str) -> str:
            return self.vm.shell(f"echo {text} >> /root/said; cat /root/said", check=True).stdout

        def fork(self):
            (fork,) = self.vm.fork()
            return fork

    async with connected() as own:
        vm = await asyncio.to_thread(own.fork, NAME)
        keeper = ray.remote(num_cpus=0)(Keeper).remote(vm)
        try:
            assert await keeper.say.remote("one") == "one\n"
            assert await keeper.say.remote("two") == "one\ntwo\n"
            fork = await keeper.fork.remote()
            assert await asyncio.to_thread(lambda: fork.read_file("/root/said")) == b"one\ntwo\n"
            assert fork.node == vm.node
        finally:
            ray.kill(keeper)


async def test_a_node_is_drained(cluster, nodes) -> None:
    first, second, _ = nodes.names
    # Only the second has it in force: it is built with the image of the first.
    there = Places(nodes.places[first].home, nodes.places[second].runtime)
    await Template.build("alone", VMConfig(), places=there)
    await until(cluster, lambda told: "alone" in {each["name"] for each in told["templates"]})
    vm = await cluster.fork(NAME, node=second)
    try:
        with pytest.raises(DeadlineExceeded):
            await cluster.drain(second, timeout_s=0.0)
        told = await cluster.status()
        assert get_node(told, second)["state"] == "draining"
        (alone,) = (each for each in told["templates"] if each["name"] == "alone")
        assert {*alone["nodes"]} > {second}
        with pytest.raises(NoNode, match="being drained"):
            await cluster.fork(NAME, node=second)
        async with cluster.fork("alone") as elsewhere:
            assert elsewhere.node != second
        draining = asyncio.ensure_future(cluster.drain(second, timeout_s=120.0))
        assert (await vm.exec(["echo", "still"])).stdout == "still\n"
        assert not draining.done()
        await vm.aclose()
        await draining
        assert (await cluster.status())["machines"] == []
    finally:
        await cluster.undrain(second)
        for node in nodes.names:
            if (template := await _find("alone", nodes.places[node])) is not None:
                await template.remove()
    async with cluster.fork(NAME, node=second) as vm:
        assert vm.node == second


async def _find(name: str, places: Places) -> Template | None:
    try:
        return await Template.open(name, places=places)
    except TemplateNotFound:
        return None


async def test_machines_wait_on_a_node_that_is_to_keep_some_and_end_with_its_process(cluster, nodes) -> None:
    settings = {"VMFORK_FACTORY_TEMPLATES": NAME, "VMFORK_FACTORY_CACHE": "1"}
    node = nodes.add(nodes.make_places(), settings)

    async def until_one_waits(but: str = "") -> str:
        def waits(told) -> bool:  # what is told may be the last word of a process that ended
            left = nodes.list_left()[node]
            return get_node(told, node)["pooled"] == len(left) == 1 and but not in left

        await until(cluster, waits)
        return nodes.list_left()[node][0]

    try:
        await until(cluster, lambda told: node in {each["name"] for each in told["nodes"]})
        await cluster.prefetch(NAME, nodes=[node])
        waiting = await until_one_waits()
        async with cluster.fork(NAME, node=node) as vm:
            assert vm.id == waiting
            assert (await vm.exec(["echo", "ready"])).stdout == "ready\n"
            assert get_node(await cluster.status(), node)["counts"]["from_pool"] == 1
        waiting = await until_one_waits(but=waiting)
        os.kill(await nodes.find_pid(node), signal.SIGKILL)
        await until_one_waits(but=waiting)
    finally:
        nodes.kill(node)
        await until(cluster, lambda told: {each["name"] for each in told["nodes"]} == {*nodes.names})
