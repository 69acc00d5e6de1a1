"""What the package ships beside its Python: programs that its build step compiles."""

from __future__ import annotations

from pathlib import Path

from vmfork.errors import HostError


def find_shipped(name: str, *, what: str) -> Path:
    """The file called `name`. Raises `HostError`, which says `what` is missing, when it was not built."""
    path = Path(__file__).with_name("data") / name
    if not path.is_file():
        raise HostError(
            f"{what} is missing from this installation: {path}",
            hint="install vmfork again; its build step compiles it: pip install --force-reinstall vmfork",
        )
    return path
