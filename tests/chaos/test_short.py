"""The short form of `make chaos`: a death or two in each operation that boots no guest, and a lack of descriptors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.vm.cli_runner import run

ROOT = Path(__file__).parents[2]
# Those that boot no guest.
CHEAP = ("fork", "adopt", "exec", "hand-over", "detach", "network", "left", "image", "sweep", "descriptors")


@pytest.mark.vm
@pytest.mark.limit_s(600)
def test_whoever_is_killed_the_next_command_works_and_a_sweep_leaves_nothing(template_name) -> None:
    argv = (
        "--template",
        template_name,
        "--quick",
        "--count",
        "12",
        "--seed",
        "8",
        *(f"--only={each}" for each in CHEAP),
    )
    done = run(sys.executable, "-m", "tests.chaos", *argv, cwd=ROOT, limit_s=580)
    assert done.status == 0, done.err
