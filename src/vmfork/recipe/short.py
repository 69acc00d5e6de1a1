"""The short way to steps: what is most often wanted, said without them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmfork.recipe.step import Copy, Packages, Pip
from vmfork.recipe.words import read_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.recipe.step import Step
    from vmfork.wire.given import HostPath


def expand_steps(
    steps: Sequence[Mapping[str, Any]],
    *,
    packages: Sequence[str],
    files: Mapping[str, HostPath],
    pip: Sequence[str],
    folder: Path,
) -> tuple[Step, ...]:
    """Packages first, then `files` (path in the guest: file or folder of `folder`), then `pip`, then the steps.

    Raises `ConfigError` for a step that is none, and for a path that is none.
    """
    given = read_steps(steps)
    first = next((at for at, step in enumerate(given) if not isinstance(step, Packages)), len(given))
    copies = [Copy(sources=(_name_inside(path, folder),), target=target) for target, path in files.items()]
    return (
        *([Packages(names=tuple(packages))] if packages else ()),
        *given[:first],
        *copies,
        *([Pip(wanted=tuple(pip))] if pip else ()),
        *given[first:],
    )


def _name_inside(path: HostPath, folder: Path) -> str:
    """The path from the folder on; one that does not lie in it stays as it is, and is refused by its step."""
    text = os.fspath(path)
    absolute = Path(folder).absolute()
    return str(Path(text).relative_to(absolute)) if Path(text).is_relative_to(absolute) else text
