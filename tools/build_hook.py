"""Puts the compiled programs into the package when hatchling builds it, editable installs included."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from types import ModuleType


def _load_build() -> ModuleType:
    """The module `build.py` beside this file. Not imported by name: `build` is also a package on PyPI."""
    spec = importlib.util.spec_from_file_location("vmfork_build", Path(__file__).with_name("build.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class ProgramBuildHook(BuildHookInterface[Any]):
    """The programs are compiled before a wheel is put together, and the wheel has them though git ignores them."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`tools/build.py` names where each lies. A source distribution carries only its sources.

        VMFORK_WHEEL_ARCH asks for a wheel for another kind of host. Its tag says the glibc that the library needs.
        """
        if self.target_name != "wheel":
            return
        build = _load_build()
        arch = os.environ.get("VMFORK_WHEEL_ARCH", build.HERE)
        placed = [program.build() for program in build.programs_for(arch)]
        build_data["artifacts"] += [str(path.relative_to(self.root)) for path in placed]
        if version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-manylinux_2_17_{arch}.manylinux2014_{arch}"
