"""Programs of ours compiled with sanitizers: each source once in a run, by the process that needs it first."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1")
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def _compiler() -> tuple[str, ...]:
    """gcc or clang with the sanitizers; zig, which every build of the project has, carries only one of them."""
    for name in ("gcc", "clang"):
        if (path := shutil.which(name)) is not None:
            return (path, *_SANITIZE, *_FLAGS)
    return (sys.executable, "-m", "ziglang", "cc", "-fsanitize=undefined", *_FLAGS)


@dataclass(frozen=True, slots=True)
class Objects:
    """Sources that were compiled, as objects in `folder`, which all processes of the run see."""

    folder: Path

    def compile(self, sources: Iterable[Path], *defines: str) -> list[Path]:
        """The objects of the sources, which are compiled where nobody has done so yet."""
        return [self._compile_one(source, defines) for source in sources]

    def link(self, out: Path, objects: Sequence[Path], *options: str) -> Path:
        """`out` is made of the objects, and of the sources among `options`, with those options."""
        subprocess.run([*_compiler(), *options, *map(str, objects), "-o", str(out)], check=True, timeout=300)
        return out

    def _compile_one(self, source: Path, defines: Sequence[str]) -> Path:
        made = self.folder / f"{''.join((source.parent.name, *defines))}-{source.stem}.o"
        with made.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                part = made.with_suffix(".part")
                subprocess.run([*_compiler(), *defines, "-c", str(source), "-o", str(part)], check=True, timeout=300)
                part.rename(made)
        return made
