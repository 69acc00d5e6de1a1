"""A Python environment with given requirements in a root file system, as a layer over it, kept for a week."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from hosts import cache
from hosts.stage import run_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BIN = "/venv/bin"

_SCRIPT = f'python3 -m venv /venv && exec {BIN}/pip install --quiet --no-cache-dir "$@"'


class InstallError(Exception):
    """pip could not install what is required; it said why."""


@contextmanager
def open_python(root: Path, requirements: Sequence[str]) -> Iterator[Path]:
    """In the block the layer holds the environment `/venv`, made by the Python of `root`. Raises `InstallError`."""

    def make(folder: Path) -> None:
        if run_on([root], ["sh", "-c", _SCRIPT, "sh", *requirements], kept=folder):
            raise InstallError("the Python packages could not be installed, see above")

    # A root made anew may have another Python.
    packages = (root.parent / "packages").read_text()
    with cache.open_kept(f"{root.parent.name}-python", [packages, sorted(requirements)], make) as folder:
        yield folder / "upper"
