"""In a parallel run what may take long comes first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from tests.rules.limits import LIMIT_S, LIMIT_WITH_MACHINES_S
from tests.rules.order import pytest_collection_modifyitems

TESTS = Path(__file__).parents[2]


@dataclass
class Item:
    path: Path
    name: str
    limits: dict[str, SimpleNamespace] = field(default_factory=dict)

    def get_closest_marker(self, name: str) -> SimpleNamespace | None:
        return self.limits.get(name)


def item(path: str, name: str, limit_s: float | None = None) -> Item:
    return Item(TESTS / path, name, {} if limit_s is None else {"limit_s": SimpleNamespace(args=(limit_s,))})


def collected() -> list[Item]:
    return [
        item("unit/test_a.py", "a"),
        item("vm/test_b.py", "b"),
        item("unit/test_c.py", "c"),
        item("vm/test_d.py", "d1"),
        item("vm/test_d.py", "d2", 900.0),
        item("vm/test_e.py", "e", 1200.0),
        item("unit/test_f.py", "f", 0.5),
    ]


def names(items: list[Item]) -> str:
    return " ".join(each.name for each in items)


def test_files_come_by_what_their_tests_may_take_and_stay_whole() -> None:
    assert LIMIT_S < LIMIT_WITH_MACHINES_S < 900
    items = collected()
    pytest_collection_modifyitems(SimpleNamespace(workerinput={}), items)
    assert names(items) == "e d1 d2 b a c f"


def test_a_run_of_one_process_keeps_its_order() -> None:
    items = collected()
    pytest_collection_modifyitems(SimpleNamespace(), items)
    assert names(items) == names(collected())
