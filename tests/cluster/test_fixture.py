"""The nodes that tests share have an owner: where one fails to start, nothing of any is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(300)]

# In a process of its own: one process has one cluster of Ray's. Labels that Ray cannot read are found when the other
# processes of a node run already.
_FAILS = """
import os, sys
from tests.cluster.nodes import open_ray_nodes
from tests.rules.orphans import Orphans

def children():
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += file.read().split()
    return found

orphans, begun = Orphans(), []
try:
    with open_ray_nodes() as nodes:
        root = nodes.root
        for number in range(int(sys.argv[1])):
            nodes.add(nodes.make_places())
        begun = children()
        os.environ["RAY_OVERRIDE_LABELS"] = "nonsense"
        nodes.add(nodes.make_places())
except ValueError as error:
    print(type(error).__name__, len(begun) > 0)
print(children(), orphans.find(), root.exists())
"""


@pytest.mark.parametrize("others", [0, 1], ids=["the first", "another"])
def test_a_node_that_fails_to_start_leaves_nothing(others) -> None:
    argv = [sys.executable, "-c", _FAILS, str(others)]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"JSONDecodeError {others > 0}", "[] [] False"], done.stderr
