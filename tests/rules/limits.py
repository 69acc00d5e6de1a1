"""Every test ends: what takes longer than its limit fails, with where it was."""

from __future__ import annotations

import asyncio
import io
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import FrameType

# For the test itself. On two cores with a load of 13, tests that take 5 s alone took more than 60. With machines under
# TCG, beside another test that has some, a slow one takes 60 s.
LIMIT_S = 180.0
LIMIT_WITH_MACHINES_S = 300.0
# For its fixtures: the first test that needs it builds the image (110 MB are fetched) and a template.
FIXTURES_LIMIT_S = 600.0
_UNIT = Path(__file__).parents[1] / "unit"
# Raised inside a callback it would end in the event loop's log: it is raised again until it comes through.
_AGAIN_S = 2.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit_s(seconds): how long the test may take, in place of the usual limit")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    with limited(FIXTURES_LIMIT_S, f"the fixtures of {item.nodeid}"):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    with limited(limit_of(item), item.nodeid):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    with limited(FIXTURES_LIMIT_S, f"the end of {item.nodeid}"):
        return (yield)


def limit_of(item: pytest.Item) -> float:
    if (mark := item.get_closest_marker("limit_s")) is not None:
        return float(mark.args[0])
    return LIMIT_S if item.path.is_relative_to(_UNIT) else LIMIT_WITH_MACHINES_S


@contextmanager
def limited(seconds: float, what: str) -> Iterator[None]:
    """The block fails when it takes longer. In the main thread, and not one inside another."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"{what} took longer than {seconds:g} s\n{_where_tasks_are()}")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _where_tasks_are() -> str:
    """The stacks of the tasks of the loop that runs here: of a test that awaits, Python's own shows the loop."""
    text = io.StringIO()
    with suppress(RuntimeError):  # no loop runs
        for task in asyncio.all_tasks():
            task.print_stack(file=text)
    return text.getvalue()
