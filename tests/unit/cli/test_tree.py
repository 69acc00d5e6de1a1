"""Templates are drawn below those that they descend from."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.unit.store.samples import build_small
from vmfork.cli.main import main
from vmfork.cli.tree import Tree
from vmfork.config import find_places
from vmfork.store import TemplateStore


def draw(things, *, top=True):
    tree = Tree(list(things), name=str, line=lambda each: things[each])
    return ["".join(each) for each in tree.draw(top=top)]


def test_each_stands_below_the_nearest_of_its_line() -> None:
    things = {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["a", "gone"], "e": ["gone"]}
    assert draw(things) == ["├─ a", "│  ├─ b", "│  │  └─ c", "│  └─ d", "└─ e"]
    assert draw(things, top=False) == ["a", "├─ b", "│  └─ c", "└─ d", "e"]
    assert draw({}) == []


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))
    store = TemplateStore(find_places().templates)
    yield store
    for name in store.list_names():
        asyncio.run(store.remove(name))


def build(store, name: str, **options) -> str:
    return asyncio.run(build_small(store, name, **options))


def test_a_template_stands_below_that_of_whose_fork_it_was_frozen(store, capsys) -> None:
    base = f"base/{build(store, 'base')}"
    middle = f"middle/{build(store, 'middle', ancestors=(base,))}"
    build(store, "far", ancestors=(base, middle, "gone/0123456789abcdef"))
    assert main(["template", "ls", "--tree"]) == 0
    names = [line.split("default")[0].rstrip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["base", "└─ middle", "   └─ far"]
    asyncio.run(store.remove("middle"))
    assert main(["template", "ls", "--tree", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["children"]] == ["far"]


def test_one_that_was_replaced_is_not_what_they_descend_from(store, capsys) -> None:
    base = f"base/{build(store, 'base')}"
    build(store, "below", ancestors=(base,))
    build(store, "base", replace=True, ancestors=(base,))
    assert main(["template", "ls", "--tree", "--json"]) == 0
    assert [(each["name"], each["children"]) for each in json.loads(capsys.readouterr().out)] == [
        ("base", []),
        ("below", []),
    ]
