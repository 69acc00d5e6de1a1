"""Nodes that are not like the others: without room, with another emulator, another vmfork, another Python."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.cluster.conftest import NAME, get_node, over_both, until
from tests.cluster.promises import what_a_node_does_is_in_the_trace_of_whoever_asked
from tests.recorded_spans import trace_processes
from tests.rules.capabilities import need
from vmfork.errors import NoNode, NoRoom

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.limit_s(900)]

CONNECT = """
import sys, vmfork
try:
    vmfork.Cluster.connect(sys.argv[1])
except vmfork.HostError as error:
    print(error, "|", error.hint)
"""


def prepend(folder: Path) -> str:
    return os.pathsep.join(filter(None, (str(folder), os.getcwd(), os.environ.get("PYTHONPATH"))))


@over_both
async def test_strangers_get_no_machine_and_say_why(cluster, nodes, tmp_path) -> None:
    emulator = tmp_path / "qemu"
    real = shutil.which("qemu-system-x86_64")
    emulator.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 9.9.9" && exit\nexec {real} "$@"\n'
    )
    emulator.chmod(0o755)
    other = tmp_path / "other" / "vmfork-0.0.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: vmfork\nVersion: 0.0.9\n")
    full, old, elsewhere = (
        nodes.add(nodes.make_places(), env, kind="stranger")
        for env in (
            {"VMFORK_VM_RESERVE_MIB": str(1 << 20)},
            {"VMFORK_VM_QEMU": str(emulator)},
            {"PYTHONPATH": prepend(other.parent)},
        )
    )
    try:
        async with await nodes.join() as joining:
            await until(joining, lambda told: {full, old, elsewhere} <= {each["name"] for each in told["nodes"]})
            with pytest.raises(NoRoom) as refused:
                await joining.fork(NAME, node=full, wait_s=0.0)
            assert refused.value.hint
            with pytest.raises(NoNode, match=r"qemu\.version"):
                await joining.fork(NAME, node=old)
            with pytest.raises(NoNode, match=r"it runs vmfork 0\.0\.9"):
                await joining.fork(NAME, node=elsewhere)
            assert "0.0.9" in get_node(await joining.status(), elsewhere)["state"]
            vms = await joining.fork_many(NAME, 3)
            assert {full, old, elsewhere}.isdisjoint(vm.node for vm in vms)
            await asyncio.gather(*(vm.aclose() for vm in vms))
    finally:
        for node in (full, old, elsewhere):
            nodes.kill(node)
        await until(cluster, lambda told: {each["name"] for each in told["nodes"]} == {*nodes.names})


@pytest.mark.needs("ray")
async def test_what_a_node_does_is_in_the_trace_of_whoever_asked(cluster, nodes, tmp_path) -> None:
    need("opentelemetry")
    node = nodes.add(nodes.make_places(), trace_processes(tmp_path))
    try:
        await until(cluster, lambda told: node in {each["name"] for each in told["nodes"]})
        await what_a_node_does_is_in_the_trace_of_whoever_asked(cluster, NAME, node, tmp_path)
    finally:
        nodes.kill(node)
        await until(cluster, lambda told: {each["name"] for each in told["nodes"]} == {*nodes.names})


@pytest.mark.needs("ray")
async def test_a_program_of_another_python_is_told_so(cluster, nodes) -> None:
    """Ray compares with what the head wrote down."""
    gcs = import_module("ray")._private.worker.global_worker.gcs_client
    constants = import_module("ray._private.ray_constants")
    written = gcs.internal_kv_get(b"CLUSTER_METADATA", constants.KV_NAMESPACE_CLUSTER)
    other = json.dumps({**json.loads(written), "python_version": "3.8.1"}).encode()
    gcs.internal_kv_put(b"CLUSTER_METADATA", other, True, constants.KV_NAMESPACE_CLUSTER)
    try:
        driver = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONNECT, nodes.ray_cluster.address, stdout=asyncio.subprocess.PIPE
        )
        told = (await driver.communicate())[0].decode()
    finally:
        gcs.internal_kv_put(b"CLUSTER_METADATA", written, True, constants.KV_NAMESPACE_CLUSTER)
    assert "3.8.1" in told
    assert "run the same versions of Python and Ray" in told
