"""What a measurement is: a coroutine, its share of a run's time, and what is made of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.suite.context import Context
    from benchmarks.suite.figures import Plot, Row, Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One measurement: what it is called, what it takes, which figures and pictures are made of it.

    `budget_s` is its part of a whole run: it takes fewer rounds when they are slow, and says how many. One that
    `is_asked_for` is in no whole run, but where it is named.
    """

    name: str
    title: str
    unit: str
    run: Callable[[Context], Awaitable[Samples]]
    rows: tuple[Row, ...] = ()
    plots: tuple[Plot, ...] = ()
    budget_s: float = 30.0
    is_asked_for: bool = False
