"""A shop with a database, filled once. It runs in the machine, in an interpreter that every fork finds."""

from __future__ import annotations

import sqlite3

shop = sqlite3.connect("/root/shop.db", isolation_level=None)
shop.execute("CREATE TABLE stock (item TEXT PRIMARY KEY, count INTEGER CHECK (count >= 0))")
shop.executemany("INSERT INTO stock VALUES (?, ?)", [("pen", 10), ("ink", 1)])


def sell(item: str, sold: int = 1) -> None:
    shop.execute("UPDATE stock SET count = count - ? WHERE item = ?", (sold, item))


def count(item: str) -> int:
    return int(shop.execute("SELECT count FROM stock WHERE item = ?", (item,)).fetchone()[0])
