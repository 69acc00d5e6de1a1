"""`vmfork ps` chooses machines by their labels, and draws them below their templates."""

from __future__ import annotations

import json

import pytest

from tests.unit.machine.test_ended import leave, vms  # noqa: F401 - a fixture
from vmfork.cli.main import main


@pytest.fixture
def left(vms):  # noqa: F811
    """Ids: two of `web`, of which one has two labels, and a booted one."""
    return {
        "both": leave(vms, ago_s=3, template="web", labels={"job": "7", "kind": "test"}),
        "one": leave(vms, ago_s=2, template="web", labels={"job": "7"}),
        "booted": leave(vms, ago_s=1, template=""),
    }


def listed(capsys, *argv: str):
    assert main(["ps", "-a", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ((), {"both", "one", "booted"}),
        (("job=7",), {"both", "one"}),
        (("job",), {"both", "one"}),
        (("job=7", "kind"), {"both"}),
        (("job=8",), set()),
        (("",), {"both", "one", "booted"}),
    ],
)
def test_all_labels_that_are_named_must_be_there(left, capsys, filters, found) -> None:
    told = listed(capsys, *(part for each in filters for part in ("--filter", each)))
    assert {each["id"] for each in told} == {left[name] for name in found}


def test_the_tree_has_each_machine_below_its_template(left, capsys) -> None:
    told = listed(capsys, "--tree")
    assert {group["template"]: [each["id"] for each in group["machines"]] for group in told} == {
        "": [left["booted"]],
        "web": [left["both"], left["one"]],
    }
    assert main(["ps", "-a", "--tree", "--filter", "job"]) == 0
    head, template, first, last = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["TEMPLATE", "NAME", "STATE"]
    assert template == "web"
    assert first.startswith(f"├─ {left['both']}")
    assert last.startswith(f"└─ {left['one']}")
    assert "ended: it was stopped" in last


def test_the_tree_has_forks_of_a_machine_below_what_is_left_of_their_line(vms, capsys) -> None:  # noqa: F811
    gone = "0" * 12
    first = leave(vms, ago_s=5)
    child, last = leave(vms, ago_s=4, line=[first]), leave(vms, ago_s=3, line=[gone])
    grandchild, other = leave(vms, ago_s=2, line=[first, child]), leave(vms, ago_s=1, line=[first, gone])
    assert main(["ps", "-a", "--tree"]) == 0
    lines = [line.partition("  it")[0].rstrip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line.split("  ended")[0].rstrip() for line in lines] == [
        f"├─ {first}",
        f"│  ├─ {child}",
        f"│  │  └─ {grandchild}",
        f"│  └─ {other}",
        f"└─ {last}",
    ]


def test_without_machines_the_tree_is_empty(vms, capsys) -> None:  # noqa: F811
    assert listed(capsys, "--tree") == []
    assert main(["ps", "--tree"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
