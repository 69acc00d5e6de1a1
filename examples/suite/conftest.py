"""The template of this suite: a shop's database, filled once, in the memory of an interpreter that every fork finds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import vmfork


@pytest.fixture(scope="session")
def vm_template(vm_build: Callable[..., vmfork.Template]) -> vmfork.Template:
    return vm_build("example-shop", recipe=Path(__file__).with_name("vmfork.toml"))
