"""A program moves from `Template.fork` to `Cluster.fork` by one line: both have the same, but for what is told."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from vmfork.aio import VM, Cluster, ClusterVM, Template

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cluster-vm.md"
END = "Of calls that both have"
# A cluster has room somewhere: who asks it waits by default.
OTHERWISE = {("fork", "wait_s"), ("fork_many", "wait_s")}


def list_public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def list_parameters(call) -> dict[str, inspect.Parameter]:
    return {name: each for name, each in inspect.signature(call).parameters.items() if name != "self"}


def list_written(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


BOTH = sorted(name for name in list_public(VM) & list_public(ClusterVM) if callable(getattr(ClusterVM, name)))


def test_what_it_lacks_is_told() -> None:
    page = PAGE.read_text()
    table = page[: page.index(END)]
    told = {name for line in table.splitlines() if line.startswith("| `") for name in list_written(line.split("|")[1])}
    assert told == list_public(VM) - list_public(ClusterVM)


@pytest.mark.parametrize("name", BOTH)
def test_a_call_of_both_has_the_same_parameters_but_for_those_that_are_told(name) -> None:
    page = PAGE.read_text()
    left_out = list_written(page[page.index(END) :])
    here, there = list_parameters(getattr(VM, name)), list_parameters(getattr(ClusterVM, name))
    assert there.keys() <= here.keys()
    assert here.keys() - there.keys() <= left_out
    for parameter, each in there.items():
        assert (each.default, each.kind) == (here[parameter].default, here[parameter].kind), parameter


@pytest.mark.parametrize("name", ["fork", "fork_many"])
def test_forks_of_both_are_asked_for_alike(name) -> None:
    here, there = list_parameters(getattr(Template, name)), list_parameters(getattr(Cluster, name))
    assert here.keys() <= there.keys()
    for parameter, each in here.items():
        if (name, parameter) not in OTHERWISE:
            assert each.default == there[parameter].default, parameter


def test_there_are_calls_of_both() -> None:
    assert {"exec", "run_code", "put", "fork", "pause", "list_dir"} <= {*BOTH}
