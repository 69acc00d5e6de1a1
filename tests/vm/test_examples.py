"""The examples do what they say, on real machines. What the demo finds is in tests/unit/examples."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from tests.vm.cli_runner import run
from vmfork import Template

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


@pytest.fixture(scope="module")
def warm(instance):
    """The template of those that share one, which each builds where it is missing."""
    template = Template.ensure("examples", recipe=runpy.run_path(str(EXAMPLES / "untrusted.py"))["RECIPE"])
    yield
    template.remove()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("untrusted.py", "9 pieces, 0 of which ended otherwise than they should"),
        ("shards.py 2", "6 tests in 2 machines, 1 failed"),
        ("worker.py 3", "3 requests, answered by 3 machines; each saw its own alone"),
        ("notebook.py", "a line of squares is best, and says 203 of 20; the session still has 9.9"),
        ("fuzz.py 6", "'a=]': the interpreter was ended by SIGSEGV"),
    ],
)
def test_an_example_with_a_warm_interpreter_ends_well(warm, name: str, said: str) -> None:
    script, *arguments = name.split()
    told = run(sys.executable, str(EXAMPLES / script), *arguments).check()
    assert said in told.out
