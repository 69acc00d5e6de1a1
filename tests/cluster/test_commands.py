"""`vmfork cluster`, against a cluster that lives."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.conftest import NAME

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]


async def ask(nodes, *arguments: str) -> str:
    command = [sys.executable, "-m", "vmfork", "cluster", *arguments, "--address", nodes.ray_cluster.address]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    told = (await process.communicate())[0].decode()
    assert process.returncode == 0, told
    return told


async def test_they_tell_what_is_there(cluster, nodes) -> None:
    async with cluster.fork(NAME, key="shown") as vm:
        status = json.loads(await ask(nodes, "status", "--json"))
        assert {each["name"] for each in status["nodes"]} == {*nodes.names}
        assert [each["id"] for each in status["machines"]] == [vm.id]
        assert vm.node in await ask(nodes, "nodes")
        (template,) = (each for each in json.loads(await ask(nodes, "templates", "--json")) if each["name"] == NAME)
        assert vm.node in template["nodes"]
        line = next(each for each in (await ask(nodes, "ps")).splitlines() if vm.id in each)
        assert line.split()[1:4] == [vm.node, NAME, "shown"]
        families = {each.name: each for each in text_string_to_metric_families(await ask(nodes, "metrics"))}
        machines = {each.labels["node"]: each.value for each in families["vmfork_node_machines"].samples}
        assert machines == {node: float(node == vm.node) for node in nodes.names}
