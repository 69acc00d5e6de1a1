"""Builds the guest agent with the zig compiler from PyPI. Run as a program, it fills `src/vmfork/image/data/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES = Path(__file__).resolve().parent
OUTPUT = SOURCES.parent / "src" / "vmfork" / "image" / "data" / "agent-x86_64"
TARGET = "x86_64-linux-musl"
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")


class BuildError(Exception):
    """The compiler failed; the text is what it said."""


def sources() -> list[Path]:
    """The C files of the agent, in a fixed order."""
    return sorted(SOURCES.glob("*.c"))


def is_current(out: Path) -> bool:
    """True when `out` is newer than everything it is made of."""
    inputs = [*sources(), *SOURCES.glob("*.h"), Path(__file__)]
    return out.exists() and all(path.stat().st_mtime < out.stat().st_mtime for path in inputs)


def build_agent(out: Path, *, target: str = TARGET, defines: Sequence[str] = ()) -> Path:
    """`out` is the agent for `target`, static and stripped; it is replaced by rename. `BuildError` otherwise.

    `defines` are macros such as `PROTOCOL=0`. zig keeps its caches where ZIG_GLOBAL_CACHE_DIR and ZIG_LOCAL_CACHE_DIR
    say; the first build for a target takes about 30 s, because zig compiles musl too.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    argv = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-static", "-Os", "-s", *FLAGS]
    argv += [f"-D{define}" for define in defines]
    argv += [*(str(path) for path in sources()), "-o", str(temporary)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        raise BuildError(f"{' '.join(argv)}\n{done.stdout}{done.stderr}")
    temporary.replace(out)
    return out


def build_if_needed(out: Path = OUTPUT) -> Path:
    """`out` is the agent made from the sources as they are."""
    return out if is_current(out) else build_agent(out)


def main() -> int:
    """Builds the agent the package ships and prints where it is."""
    try:
        sys.stdout.write(f"{build_if_needed()}\n")
    except BuildError as error:
        sys.stderr.write(f"error: the guest agent could not be built\n{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
