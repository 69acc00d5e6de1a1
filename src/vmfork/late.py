"""The one door for imports by name: what a process never uses it never loads."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def import_late(module: str, name: str) -> Any:
    """What `module`, imported now, calls `name`."""
    return getattr(importlib.import_module(module), name)


def late_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` (PEP 562) of `package`: each name of `homes` comes from its module when it is first used.

    A name whose module is `package.name` is that module.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(homes[name])
        value = module if homes[name] == f"{package}.{name}" else getattr(module, name)
        vars(sys.modules[package])[name] = value  # the next use finds it without asking here
        return value

    return get
