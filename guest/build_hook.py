"""Puts the guest agent into the package when hatchling builds it, editable installs included."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from types import ModuleType


def _load_build() -> ModuleType:
    """The module `build.py` beside this file. Not imported by name: `build` is also a package on PyPI."""
    spec = importlib.util.spec_from_file_location("vmfork_guest_build", Path(__file__).with_name("build.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class AgentBuildHook(BuildHookInterface[Any]):
    """The agent is compiled before a wheel is put together, and the wheel has it though git ignores it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`src/vmfork/image/data/` has the agent. A source distribution carries only its sources."""
        if self.target_name != "wheel":
            return
        agent = _load_build().build_if_needed()
        build_data["artifacts"].append(str(agent.relative_to(self.root)))
