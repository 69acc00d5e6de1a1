"""A node, its process, the directory or a program is killed in the middle of something. Nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

import pytest

from tests.cluster.conftest import NAME, SLOW, get_node, over_both, until
from vmfork.aio import Template
from vmfork.config import Places, VMConfig
from vmfork.errors import NodeLost, TemplateNotFound, VMNotFound

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.limit_s(900)]

# Seconds, on a host that may be busy: where nothing tells that a node has ended, nobody is answered at all.
SECONDS = 30.0
DRIVER = """
import time, vmfork
cluster = {joining}
brief = cluster.fork("cluster", key="brief")
cluster.fork("cluster", key="long", lasts=True, ttl_s=3600.0)
cluster.fork("cluster", key="short", lasts=True, ttl_s=20.0)
print(brief.id, flush=True)
time.sleep(3600)
"""


@over_both
async def test_the_process_of_a_node_is_killed(cluster, nodes) -> None:
    """What does not last is gone, what lasts is found again by the process that is started; neither is there twice.

    Whoever was calling is told at once.
    """
    node = nodes.names[0]
    lasting = await cluster.fork(NAME, key="lasts", node=node, lasts=True, ttl_s=600.0)
    brief = await cluster.fork(NAME, key="brief", node=node)
    running = asyncio.ensure_future(brief.exec(["sleep", "600"]))
    events = brief.stream(["sh", "-c", "echo one; exec sleep 600"])
    assert (await anext(events)).data == b"one\n"
    await nodes.restart(node)
    for call in (running, anext(events)):
        with pytest.raises(NodeLost) as lost:
            async with asyncio.timeout(SECONDS):
                await call
        assert (lost.value.node, lost.value.machines) == (node, (brief.id,))
        assert brief.id in str(lost.value)
    await events.aclose()
    again = await cluster.fork(NAME, key="lasts", node=node, lasts=True, ttl_s=600.0)
    assert again.id == lasting.id
    assert (await again.exec(["echo", "still"])).stdout == "still\n"
    with pytest.raises((VMNotFound, NodeLost)):
        await brief.exec(["true"])
    new = await cluster.fork(NAME, key="brief", node=node)
    assert new.id != brief.id
    assert len((await cluster.status())["machines"]) == 2


@pytest.mark.needs("ray")
async def test_machines_that_last_outlive_the_stop_of_ray_on_their_host(cluster, nodes) -> None:
    """The node that begins there next has another name. It takes them once Ray knows that the one before has ended."""
    node = nodes.names[1]
    lasting = await cluster.fork(NAME, key="lasts", node=node, lasts=True, ttl_s=600.0)
    nodes.stop(node)
    name = nodes.revive(node)
    await until(
        cluster, lambda told: any((each["id"], each["node"]) == (lasting.id, name) for each in told["machines"])
    )
    again = await cluster.fork(NAME, key="lasts", lasts=True, ttl_s=600.0)
    assert (again.id, again.node) == (lasting.id, name) != (lasting.id, node)
    assert (await again.exec(["echo", "still"])).stdout == "still\n"
    assert [each["id"] for each in (await cluster.status())["machines"]] == [lasting.id]


@pytest.mark.needs("ray")
async def test_the_directory_is_killed_under_load(cluster) -> None:
    directory = import_module("ray").get_actor("vmfork-directory", namespace="vmfork")
    kept = await cluster.fork(NAME, key="kept")
    forks = [asyncio.ensure_future(cluster.fork(NAME)) for _ in range(6)]
    os.kill(await directory.pid.remote(), signal.SIGKILL)
    vms = await asyncio.gather(*forks)
    assert (await cluster.fork(NAME, key="kept")).id == kept.id
    found = {each["id"] for each in (await cluster.status())["machines"]}
    assert found == {kept.id, *(vm.id for vm in vms)}


@over_both
async def test_a_program_is_killed(cluster, nodes) -> None:
    """Its machines end, those that last by their time to live."""
    driver = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRIVER.format(joining=nodes.joining), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert driver.stdout is not None
        brief = (await driver.stdout.readline()).decode().strip()
        assert brief in {each["id"] for each in (await cluster.status())["machines"]}
    finally:
        driver.kill()
        await driver.wait()
    told = await until(cluster, lambda told: {"brief", "short"}.isdisjoint(each["key"] for each in told["machines"]))
    assert [each["key"] for each in told["machines"]] == ["long"]
    async with await cluster.find("long") as vm:
        assert (await vm.exec(["echo", "lives"])).stdout == "lives\n"


@over_both
async def test_a_node_is_killed_while_it_runs_a_program(cluster, nodes) -> None:
    await cluster.prefetch(NAME)
    node = nodes.names[-1]
    vm = await cluster.fork(NAME, node=node)
    running = asyncio.ensure_future(vm.exec(["sleep", "600"]))
    events = vm.stream(["sh", "-c", "echo one; exec sleep 600"])
    assert (await anext(events)).data == b"one\n"
    streaming = asyncio.ensure_future(anext(events))
    await until(cluster, lambda told: vm.id in {each["id"] for each in told["machines"]})
    nodes.kill(node)
    try:
        for call in (running, streaming):
            with pytest.raises(NodeLost) as lost:
                async with asyncio.timeout(SECONDS):
                    await call
            assert (lost.value.node, lost.value.machines) == (node, (vm.id,))
            assert vm.id in str(lost.value)
        await events.aclose()
        vms = await cluster.fork_many(NAME, 4)
        assert node not in {each.node for each in vms}
        await until(cluster, lambda told: node not in {each["name"] for each in told["nodes"]})
        await asyncio.gather(*(each.aclose() for each in vms))
    finally:
        nodes.revive(node)


@over_both
async def test_a_node_is_killed_while_it_forks(cluster, nodes) -> None:
    """What was being made there is made elsewhere, once for each key."""
    await cluster.prefetch(SLOW)
    node = nodes.names[-1]
    keys = {f"key-{number}" for number in range(3)}
    forks = [asyncio.ensure_future(cluster.fork(SLOW, key=key, spread="node")) for key in keys]
    await until(cluster, lambda told: get_node(told, node)["being_made"] > 0)
    nodes.kill(node)
    try:
        vms = await asyncio.gather(*forks)
        assert node not in {vm.node for vm in vms}
        told = await until(cluster, lambda told: node not in {each["name"] for each in told["nodes"]})
        assert sorted(each["key"] for each in told["machines"]) == sorted(keys)
        assert {each["id"] for each in told["machines"]} == {vm.id for vm in vms}
        await asyncio.gather(*(vm.aclose() for vm in vms))
    finally:
        nodes.revive(node)


@over_both
@pytest.mark.parametrize("another_has_it", [True, False])
async def test_a_node_is_killed_while_it_sends_a_template(cluster, nodes, another_has_it) -> None:
    """It comes from the next that has it; where nobody has, whoever asked is told."""
    first, other, source = nodes.names
    target = nodes.places[first]
    there = Places(target.home, nodes.places[source].runtime)
    template = await Template.build("sent", VMConfig(), places=there, replace=True)
    told = await until(cluster, lambda told: "sent" in {each["name"] for each in told["templates"]})
    (digest,) = (each["digest"] for each in told["templates"] if each["name"] == "sent")
    site = cluster._site
    sources = [source]
    if another_has_it:
        await site.call(other, "pull", "sent", digest, [source])
        sources.append(other)
    pulling = asyncio.ensure_future(site.call(first, "pull", "sent", digest, sources))
    pid = await nodes.find_pid(source)
    while not pulling.done() and not [*(target.templates / "sent").glob("*/memory")]:
        await asyncio.sleep(0.005)
    os.kill(pid, signal.SIGSTOP)
    assert not pulling.done()
    nodes.kill(source)
    _kill_stopped(pid)
    try:
        if another_has_it:
            await pulling
            async with cluster.fork("sent", node=first) as vm:
                assert (await vm.exec(["echo", "whole"])).stdout == "whole\n"
        else:
            with pytest.raises(NodeLost):
                await pulling
            assert not [*(target.templates / "sent").glob("*/memory")]
    finally:
        await template.remove()
        for node in {first, other} & {*nodes.names}:
            if "sent" in await Template.list(places=nodes.places[node]):
                await (await Template.open("sent", places=nodes.places[node])).remove()
        nodes.revive(source)


@over_both
async def test_a_node_is_killed_while_a_template_comes_to_it(cluster, nodes) -> None:
    """Whoever waits is told; what was half there is in force nowhere, and comes whole once the node is back."""
    source, *_, target = nodes.names
    template = await Template.build("coming", VMConfig(), places=nodes.places[source], replace=True)
    places, back = nodes.places[target], ""
    try:
        await until(cluster, lambda told: "coming" in {each["name"] for each in told["templates"]})
        pulling = asyncio.ensure_future(cluster.prefetch("coming", nodes=[target]))
        pid = await nodes.find_pid(target)
        while not pulling.done() and not [*(places.templates / "coming").glob("*/memory")]:
            await asyncio.sleep(0.005)
        os.kill(pid, signal.SIGSTOP)
        assert not pulling.done()
        nodes.kill(target)
        _kill_stopped(pid)
        with pytest.raises(NodeLost) as lost:
            async with asyncio.timeout(SECONDS):
                await pulling
        assert lost.value.node == target
        assert await _find_whole(places, "coming") is None
        back = nodes.revive(target)
        await until(cluster, lambda told: back in {each["name"] for each in told["nodes"] if each["state"] == "ready"})
        async with cluster.fork("coming", node=back, wait_s=SECONDS) as vm:
            assert (await vm.exec(["echo", "whole"])).stdout == "whole\n"
        assert (await _find_whole(places, "coming")).manifest.memory_sha256 == template.manifest.memory_sha256
    finally:
        if not back and target not in nodes.names:
            nodes.revive(target)
        await template.remove()
        if (arrived := await _find_whole(places, "coming")) is not None:
            await arrived.remove()


def _kill_stopped(pid: int) -> None:
    """While it is stopped it does not notice that its node has ended, and stays."""
    with suppress(ProcessLookupError):  # a server is its node
        os.kill(pid, signal.SIGKILL)


async def _find_whole(places: Places, name: str) -> Template | None:
    try:
        return await Template.open(name, places=places)
    except TemplateNotFound:
        return None
