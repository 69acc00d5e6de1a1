"""vmfork for programs with an event loop: the names of `vmfork`, awaitable.

Nothing is imported until it is used: importing this module costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmfork.agent.process import GuestProcess
    from vmfork.factory import Factory
    from vmfork.template import Template
    from vmfork.vm.vm import VM

_HOME = {
    "VM": "vmfork.vm.vm",
    "Template": "vmfork.template",
    "Factory": "vmfork.factory",
    "GuestProcess": "vmfork.agent.process",
}

__all__ = ["VM", "Factory", "GuestProcess", "Template"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
