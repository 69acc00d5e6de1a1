"""The template of this suite: a shop's database, filled once, in the memory of an interpreter that every fork finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import vmfork

SHOP = """#!python
import sqlite3
shop = sqlite3.connect("/root/shop.db", isolation_level=None)
shop.execute("CREATE TABLE stock (item TEXT PRIMARY KEY, count INTEGER CHECK (count >= 0))")
shop.executemany("INSERT INTO stock VALUES (?, ?)", [("pen", 10), ("ink", 1)])

def sell(item, count=1):
    shop.execute("UPDATE stock SET count = count - ? WHERE item = ?", (count, item))

def count(item):
    return shop.execute("SELECT count FROM stock WHERE item = ?", (item,)).fetchone()[0]
"""


@pytest.fixture(scope="session")
def vm_template(vm_build: Callable[..., vmfork.Template]) -> vmfork.Template:
    return vm_build("example-shop", warm_up=[SHOP])
