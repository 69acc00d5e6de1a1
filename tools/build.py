"""Builds the static C programs the package ships, with the zig compiler from PyPI: all that are not current."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vmfork"
# What guests are, whatever the host is.
GUEST_ARCH = "x86_64"
HOST_ARCHES = ("x86_64", "aarch64")
TARGET = f"{GUEST_ARCH}-linux-musl"
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror")
# The oldest glibc of its kind: every later one has what it has.
GLIBC = "gnu.2.17"


class BuildError(Exception):
    """The compiler failed; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is built from all C files of one folder: a static program, or a library for another program to load.

    `borrowed` are files of other folders that it is made of too.
    """

    sources: Path
    output: Path
    arch: str = GUEST_ARCH
    is_library: bool = False
    borrowed: tuple[Path, ...] = ()

    def build(self) -> Path:
        """It is made from its sources as they are. Gives its place. Raises `BuildError`."""
        if not self.is_current():
            kind = GLIBC if self.is_library else "musl"
            compile_program(
                self.sources,
                self.output,
                target=f"{self.arch}-linux-{kind}",
                is_library=self.is_library,
                borrowed=self.borrowed,
            )
        return self.output

    def is_current(self) -> bool:
        """True when it is newer than everything it is made of."""
        headers = [path.with_suffix(".h") for path in self.borrowed]
        inputs = [*self.sources.glob("*.[ch]"), *self.borrowed, *headers, Path(__file__)]
        return self.output.exists() and all(path.stat().st_mtime < self.output.stat().st_mtime for path in inputs)


def compile_program(
    sources: Path,
    output: Path,
    *,
    target: str = TARGET,
    defines: Sequence[str] = (),
    is_library: bool = False,
    borrowed: Sequence[Path] = (),
) -> Path:
    """`output` is made from all C files in `sources` and those `borrowed`, static and stripped; replaced by rename.

    A library needs no other than glibc, 2.17 or newer, which the program that loads it has. It gives that program what
    its sources say is visible, and no other name.

    `defines` are macros such as `PROTOCOL=0`. zig keeps its caches where ZIG_GLOBAL_CACHE_DIR and ZIG_LOCAL_CACHE_DIR
    say; the first build for a target takes about 30 s, because zig compiles musl too. Raises `BuildError` when the
    compiler fails.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    kind = ("-shared", "-fPIC", "-fvisibility=hidden") if is_library else ("-static",)
    argv = [sys.executable, "-m", "ziglang", "cc", "-target", target, *kind, "-Os", "-s", *FLAGS]
    argv += [f"-D{define}" for define in defines]
    argv += [*(str(path) for path in (*sorted(sources.glob("*.c")), *borrowed)), "-o", str(temporary)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        raise BuildError(f"{' '.join(argv)}\n{done.stdout}{done.stderr}")
    temporary.replace(output)
    return output


# The broker speaks the agent's protocol and is an owner to the keeper: their own code reads and writes both.
_OF_BROKER = (
    *(ROOT / "guest" / f"{part}.c" for part in ("frame", "buffer", "fields", "number")),
    *(ROOT / "keeper" / f"{part}.c" for part in ("message", "clock")),
)

_OF_COPIER = (ROOT / "keeper" / "clock.c",)
_OF_PRELOAD = (ROOT / "keeper" / "message.c",)


def programs_for(arch: str) -> tuple[Program, ...]:
    """What a package for hosts of that kind ships."""
    of_host = PACKAGE / "host" / "data"
    return (
        Program(ROOT / "guest", PACKAGE / "image" / "data" / f"agent-{GUEST_ARCH}"),
        Program(ROOT / "keeper", of_host / f"keeper-{arch}", arch),
        Program(ROOT / "preload", of_host / f"preload-{arch}.so", arch, is_library=True, borrowed=_OF_PRELOAD),
        Program(ROOT / "fence", of_host / f"fence-{arch}.so", arch, is_library=True),
        Program(ROOT / "broker", of_host / f"broker-{arch}", arch, borrowed=_OF_BROKER),
        Program(ROOT / "copier", of_host / f"copier-{arch}", arch, borrowed=_OF_COPIER),
    )


HERE = os.uname().machine if os.uname().machine in HOST_ARCHES else GUEST_ARCH
PROGRAMS = programs_for(HERE)


def main() -> int:
    """Builds what is missing and prints where everything is."""
    try:
        sys.stdout.writelines(f"{program.build()}\n" for program in PROGRAMS)
    except BuildError as error:
        sys.stderr.write(f"error: a program of the package could not be built\n{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
