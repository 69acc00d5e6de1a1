"""In a parallel run the files that may take longest come first, so that short ones fill the end of it.

A file that begins when the other processes have nothing left keeps them waiting. What may take long says so by its
limit of time; then come those with machines, then all others. Of `--dist loadfile`, with `--no-loadscope-reorder`:
else those with the most tests are first, which are short ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rules.limits import limit_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.hookimpl(trylast=True)  # what is not asked for is gone by then
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):
        return
    limits: dict[Path, float] = {}
    for item in items:
        limits[item.path] = max(limits.get(item.path, 0.0), limit_of(item))
    items.sort(key=lambda item: -limits[item.path])
