"""The short form of `make soak`: the same, with fewer machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.vm.cli_runner import run

ROOT = Path(__file__).parents[2]


@pytest.mark.vm
@pytest.mark.limit_s(600)
def test_many_machines_leave_their_owner_and_the_host_as_they_were(instance) -> None:
    sizes = ("--at-once", "6", "--in-a-row", "24", "--disks", "0", "--through", "2", "--race-s", "8", "--racers", "2")
    done = run(sys.executable, "-m", "tests.soak", *sizes, cwd=ROOT, limit_s=580)
    assert done.status == 0, (done.out, done.err)
    told = json.loads(done.out[done.out.index("{") :])
    assert told["in_a_row"]["flat"]
    assert told["through"]["megabytes"] == 2
    assert told["race"]["done"]
