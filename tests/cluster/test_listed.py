"""Many programs over one list of servers, each with a directory of its own."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from tests.cluster.conftest import NAME

pytestmark = [
    pytest.mark.vm,
    pytest.mark.slow,
    pytest.mark.limit_s(900),
    pytest.mark.parametrize("nodes", ["listed"], indirect=True),
]

_FORKS = """
import json, sys, vmfork
seen, (task, count) = [], map(int, sys.argv[1:])
with {joining} as own:
    for number in range(count):
        with own.fork({name!r}, key=f"task-{{task}}-{{number}}", wait_s=600.0) as vm:
            seen.append((vm.id, vm.node, vm.exec(["cat", "/proc/sys/kernel/random/boot_id"], check=True).stdout))
print(json.dumps(seen))
"""
_SHARES = """
import json, sys, vmfork
with {joining} as own:
    vm = own.fork({name!r}, key="shared")
    print(json.dumps(vm.id), flush=True)
    sys.stdin.read()
"""


async def start(script: str, nodes, *argv: str) -> asyncio.subprocess.Process:
    program = script.format(joining=nodes.joining, name=NAME)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )


async def test_a_hundred_machines_of_eight_programs_are_all_there_and_none_is_two(cluster, nodes) -> None:
    await cluster.prefetch(NAME)
    counts = [13] * 4 + [12] * 4
    programs = [await start(_FORKS, nodes, str(task), str(count)) for task, count in enumerate(counts)]
    seen = [each for program in programs for each in json.loads((await program.communicate())[0])]
    assert len({vm for vm, _, _ in seen}) == len({boot for _, _, boot in seen}) == 100
    assert {node for _, node, _ in seen} == {*nodes.names}
    assert (await cluster.status())["machines"] == []


async def test_the_same_key_from_eight_programs_is_one_machine(cluster, nodes) -> None:
    await cluster.prefetch(NAME)
    programs = [await start(_SHARES, nodes) for _ in range(8)]
    ids = [json.loads(await program.stdout.readline()) for program in programs]
    assert len({*ids}) == 1
    assert [each["id"] for each in (await cluster.status())["machines"]] == [ids[0]]
    for program in programs:
        await program.communicate(b"")
        assert program.returncode == 0
