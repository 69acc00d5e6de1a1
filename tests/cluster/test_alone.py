"""Programs that bring their cluster along."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vmfork.aio import Template
from vmfork.config import Places, VMConfig
from vmfork.machine.folder import list_records
from vmfork.store import TemplateStore

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]

ROOT = Path(__file__).parents[2]
LOCAL = """
import ray, vmfork
with vmfork.Cluster.local() as cluster:
    with cluster.fork("alone") as vm:
        print(vm.exec(["echo", "from", vm.template], check=True).stdout, end="")
    left = cluster.fork("alone")
    print(len(cluster.status()["machines"]), ray.is_initialized())
print(ray.is_initialized())
"""
SHUT_DOWN = """
import ray, vmfork, vmfork.errors
cluster = vmfork.Cluster.local()
vm = cluster.fork("alone")
ray.shutdown()
for call in (lambda: vm.exec(["true"]), cluster.status, lambda: cluster.fork("alone")):
    try:
        call()
    except vmfork.errors.Closed as error:
        print(error, ray.is_initialized())
cluster.close()
"""


@pytest.fixture
def places(instance):
    runtime = Path(tempfile.mkdtemp(prefix="vmfork-cluster-", dir="/dev/shm"))
    yield Places(instance.home, runtime)
    TemplateStore(Places(instance.home, runtime).templates).clear()
    shutil.rmtree(runtime)


def run(places: Places, *arguments: str) -> str:
    env = {**os.environ, "VMFORK_HOME": str(places.home), "VMFORK_RUNTIME_DIR": str(places.runtime)}
    done = subprocess.run([sys.executable, *arguments], env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_cluster_of_this_host_begins_and_ends_with_its_block(places) -> None:
    asyncio.run(Template.build("alone", VMConfig(), places=places))
    assert run(places, "-c", LOCAL).splitlines() == ["from alone", "1 True", "False"]
    assert list_records(places.vms) == []


def test_where_ray_was_shut_down_it_is_told_and_does_not_begin_again(places) -> None:
    asyncio.run(Template.build("alone", VMConfig(), places=places))
    told = run(places, "-c", SHUT_DOWN).splitlines()
    assert told == ["the cluster is closed: Ray was shut down in this process False"] * 3


def test_a_node_is_killed_in_the_middle_of_a_map_of_200_and_200_answers_are_right(places) -> None:
    told = run(places, str(ROOT / "examples" / "cluster.py"), "200")
    assert "killing node" in told
    assert told.splitlines()[-1].startswith("200 of 200 answers are right")
