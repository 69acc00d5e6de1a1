"""A list of two servers on this host, over TLS with client certificates: what every cluster keeps, and losses."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cluster.promises import (
    PROMISES,
    the_disk_of_a_template_goes_with_it,
    what_a_node_does_is_in_the_trace_of_whoever_asked,
)
from tests.recorded_spans import trace_processes
from tests.rules.capabilities import need
from tests.vm.served import Servers, make_access
from vmfork.aio import Cluster, Template
from vmfork.config import Places
from vmfork.errors import NodeLost, VMNotFound
from vmfork.image import DiskStore
from vmfork.store import TemplateStore

pytestmark = [pytest.mark.vm]

# 10 s are promised where the network was cut; hosts are busy.
SECONDS = 30.0


@pytest.fixture(scope="module")
def access(tmp_path_factory):
    return make_access(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificates(access) -> dict[str, str]:
    return access[0]


@pytest.fixture(scope="module")
def options(access) -> list[str]:
    return access[1]


@pytest.fixture(scope="module")
def spans(tmp_path_factory) -> Path:
    """Where the first server tells them."""
    return tmp_path_factory.mktemp("spans")


@pytest.fixture(scope="module")
def servers(instance, template_name, options, spans, tmp_path_factory):
    root = Path(tempfile.mkdtemp(prefix="vmfork-servers-", dir="/dev/shm"))
    other = Places(home=root / "home", runtime=root / "run")
    running = Servers(options, tmp_path_factory.mktemp("servers"))
    try:
        tracing = trace_processes(spans) if find_spec("opentelemetry") else {}
        running.start(instance, labels={"rack": "1"}, more_env=tracing)
        running.start(other, labels={"rack": "2"})
        yield running
    finally:
        running.close(keep=instance)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
async def cluster(servers, certificates):
    async with Cluster.at([*servers.processes], **certificates) as joined:
        yield joined
        for machine in (await joined.status())["machines"]:
            with suppress(VMNotFound):
                await (await joined.find(machine["id"])).aclose()
        assert {address: servers.list_machines(address) for address in servers.processes} == {
            address: [] for address in servers.processes
        }


def get_node(told, name):
    return next(each for each in told["nodes"] if each["name"] == name)


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
async def test_a_list_of_servers_keeps(promise, cluster, template_name, tmp_path) -> None:
    await promise(cluster, template_name, tmp_path)


async def test_what_a_server_does_is_in_the_trace_of_whoever_asked(cluster, servers, template_name, spans) -> None:
    need("opentelemetry")
    first = next(iter(servers.processes))
    await what_a_node_does_is_in_the_trace_of_whoever_asked(cluster, template_name, first, spans)


async def test_the_disk_of_a_template_goes_with_it(cluster, servers, instance, template_name) -> None:
    last = [*servers.processes][-1]
    try:
        await the_disk_of_a_template_goes_with_it(cluster, template_name, instance, last)
    finally:
        for places in (instance, servers.places[last]):
            if "with-disk" in await Template.list(places=places):
                await (await Template.open("with-disk", places=places)).remove()
    assert DiskStore(servers.places[last].disks).find_waste() == []


def test_commands_ask_a_list(servers, options, tmp_path) -> None:
    listed = tmp_path / "servers"
    listed.write_text("# all of them\n" + "\n".join([*servers.processes, "127.0.0.1:1  # none listens"]) + "\n")

    def ask(verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vmfork", "cluster", verb, "--servers", str(listed), *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    told = json.loads(ask("status", "--json", *options).stdout)
    assert {node["name"] for node in told["nodes"]} == {*servers.processes}
    assert list(told["missing"]) == ["127.0.0.1:1"]
    refused = ask("nodes", "--ca", options[1])
    assert refused.returncode == 1
    assert f"error: node {next(iter(servers.processes))} cannot be used" in refused.stderr


async def test_machines_wait_on_a_node_that_is_to_keep_some(servers, certificates, template_name) -> None:
    """Once the template is there. What waits is given first, with an identity of its own, and ends when it drains."""
    first = next(iter(servers.processes))
    root = Path(tempfile.mkdtemp(prefix="vmfork-servers-", dir="/dev/shm"))
    settings = {"VMFORK_FACTORY_TEMPLATES": template_name, "VMFORK_FACTORY_CACHE": "1"}
    pooled = servers.start(Places(home=root / "home", runtime=root / "run"), labels={"rack": "3"}, more_env=settings)
    try:
        async with Cluster.at([first, pooled], **certificates) as cluster:

            async def until_pooled(count: int) -> dict:
                async with asyncio.timeout(SECONDS):
                    while (node := get_node(await cluster.status(), pooled))["pooled"] != count:
                        await asyncio.sleep(0.1)
                return node

            assert (await until_pooled(0))["machines"] == 0
            await cluster.prefetch(template_name, nodes=[pooled])
            told = await until_pooled(1)
            assert (told["machines"], len(servers.list_machines(pooled))) == (0, 1)
            assert (await cluster.status())["machines"] == []  # it is nobody's yet
            one = await cluster.fork(template_name, env={"WHO": "one"}, files={"/root/given": b"x"}, key="k")
            assert one.node == pooled  # of two that have the template, where one is ready
            other = await cluster.fork(template_name, node=pooled, disk="64M")
            told = await until_pooled(1)
            assert (told["counts"]["forks"], told["counts"]["from_pool"]) == (2, 1)
            assert (await one.exec(["sh", "-c", "echo $WHO; cat /root/given"])).stdout == "one\nx"
            assert (await cluster.fork(template_name, key="k")).id == one.id
            ids = [
                (await vm.exec(["cat", "/proc/sys/kernel/random/boot_id", "/etc/hostname"])).stdout
                for vm in (one, other)
            ]
            assert len({*"".join(ids).split()}) == 4
            await asyncio.gather(one.aclose(), other.aclose())
            await cluster.drain(pooled)
            assert (await until_pooled(0))["state"] == "draining"
            assert servers.list_machines(pooled) == []
            await cluster.undrain(pooled)
    finally:
        servers.end(pooled)
        TemplateStore(servers.places[pooled].templates).clear()
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.slow
async def test_a_server_that_says_nothing_more_is_lost_within_seconds(cluster, servers, template_name) -> None:
    """As where the network was cut: its end of the line is open, and nothing comes from there."""
    address = [*servers.processes][-1]
    async with cluster.fork(template_name, node=address) as vm:
        running = asyncio.ensure_future(vm.exec(["sleep", "600"]))
        await vm.exec(["true"])
        servers.processes[address].send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(NodeLost) as lost:
                async with asyncio.timeout(SECONDS):
                    await running
        finally:
            servers.processes[address].send_signal(signal.SIGCONT)
        assert (lost.value.node, lost.value.machines) == (address, (vm.id,))
