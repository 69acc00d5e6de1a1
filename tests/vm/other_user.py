"""vmfork for a user who is not root: checkout and Python of the tests may lie in a home that is root's alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.rules.capabilities import need

if TYPE_CHECKING:
    from pathlib import Path


def copy_for_others(folder: Path) -> None:
    """What the command line is made of is in `folder`: the checkout may lie in a home that only its owner can enter."""
    for name in ("vmfork", "click", "h11", "rich", "markdown_it", "mdurl", "pygments", "qemu.qmp"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.submodule_search_locations
        source = found.submodule_search_locations[0]
        shutil.copytree(source, folder / name.replace(".", "/"), ignore=shutil.ignore_patterns("__pycache__"))


def find_python_for(uid: int, env: dict[str, str]) -> str:
    """A Python that this user may run and that can import vmfork; a named skip where there is none."""
    pythons = filter(None, (os.path.realpath(sys.executable), shutil.which("python3", path="/usr/bin:/usr/local/bin")))
    found = next((python for python in pythons if _runs_vmfork(python, uid, env)), "")
    need("python-for-others", found=bool(found))
    return found


def _runs_vmfork(python: str, uid: int, env: dict[str, str]) -> bool:
    command = [python, "-c", "import vmfork.cli.main, vmfork.template"]
    try:
        subprocess.run(command, user=uid, group=uid, extra_groups=[], env=env, cwd="/", capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True
