"""Builds the static C programs the package ships, with the zig compiler from PyPI: all that are not current."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vmfork"
TARGET = "x86_64-linux-musl"
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")


class BuildError(Exception):
    """The compiler failed; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is built from all C files of one folder."""

    sources: Path
    output: Path

    def is_current(self) -> bool:
        """True when it is newer than everything it is made of."""
        inputs = [*self.sources.glob("*.[ch]"), Path(__file__)]
        return self.output.exists() and all(path.stat().st_mtime < self.output.stat().st_mtime for path in inputs)

    def build(self) -> None:
        """It is there, static and stripped; it was replaced by rename. `BuildError` otherwise.

        zig keeps its caches where ZIG_GLOBAL_CACHE_DIR and ZIG_LOCAL_CACHE_DIR say; the first build for a target takes
        about 30 s, because zig compiles musl too.
        """
        out = self.output
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        argv = [sys.executable, "-m", "ziglang", "cc", "-target", TARGET, "-static", "-Os", "-s", *FLAGS]
        argv += [*(str(path) for path in sorted(self.sources.glob("*.c"))), "-o", str(temporary)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            temporary.unlink(missing_ok=True)
            raise BuildError(f"{' '.join(argv)}\n{done.stdout}{done.stderr}")
        temporary.replace(out)


PROGRAMS = (
    Program(ROOT / "guest", PACKAGE / "image" / "data" / "agent-x86_64"),
    Program(ROOT / "keeper", PACKAGE / "host" / "data" / "keeper-x86_64"),
)


def build_missing() -> list[Path]:
    """Every program is made from its sources as they are; where they lie."""
    for program in PROGRAMS:
        if not program.is_current():
            program.build()
    return [program.output for program in PROGRAMS]


def main() -> int:
    """Builds what is missing and prints where everything is."""
    try:
        sys.stdout.writelines(f"{path}\n" for path in build_missing())
    except BuildError as error:
        sys.stderr.write(f"error: a program of the package could not be built\n{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
