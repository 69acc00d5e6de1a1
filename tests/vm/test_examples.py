"""The examples do what they say, on real machines. What the demo finds is in tests/unit/examples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.vm.cli_runner import run

pytestmark = [pytest.mark.vm]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("server.py 6", "6 forks of it, each of which has answered with its own id"),
        ("database.py", "OK"),
        ("search.py 3", "[[83], [61], [59]]"),
        pytest.param("one_host.py", ":80 denied: evil.example is not in the list", marks=pytest.mark.needs("own-name")),
        ("search.py --inside 2", "[[83], [61], []]"),
    ],
)
def test_an_example_ends_well(instance, name: str, said: str) -> None:
    script, *arguments = name.split()
    told = run(sys.executable, str(EXAMPLES / script), *arguments).check()
    assert said in told.out
