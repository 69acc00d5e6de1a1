"""Builds a wheel for each kind of host into dist/, and looks into it: `tools/wheels.py [--out FOLDER] [ARCH]...`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from build import GUEST_ARCH, HOST_ARCHES, PACKAGE, ROOT, programs_for

# e_machine of elf(5), where a file says what it runs on.
MACHINES = {"x86_64": 62, "aarch64": 183}


def build_wheel(arch: str, out: Path) -> Path:
    """A wheel for hosts of that kind is in `out`, with programs that run there and no others."""
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    env = os.environ | {"VMFORK_WHEEL_ARCH": arch}
    done = subprocess.run(argv, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the wheel for {arch} could not be built\n{done.stdout}{done.stderr}")
    (wheel,) = out.glob(f"vmfork-{metadata.version('vmfork')}-*_{arch}.whl")
    check_wheel(wheel, arch)
    return wheel


def check_wheel(wheel: Path, arch: str) -> None:
    """Raises `SystemExit` when a program is missing, is one too many, or does not run where it is to."""
    wanted = {str(program.output.relative_to(PACKAGE.parent)): program.arch for program in programs_for(arch)}
    with zipfile.ZipFile(wheel) as files:
        found = {name for name in files.namelist() if "/data/" in name and name.endswith((*HOST_ARCHES, ".so"))}
        if found != set(wanted):
            raise SystemExit(f"{wheel.name} has {sorted(found)}, not {sorted(wanted)}")
        for name, of in wanted.items():
            head = files.read(name)[:20]
            if head[:4] != b"\x7fELF" or int.from_bytes(head[18:20], "little") != MACHINES[of]:
                raise SystemExit(f"{name} of {wheel.name} is no program of {of}")


def main() -> int:
    """Prints where each wheel is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("arch", nargs="*", choices=[*HOST_ARCHES, []], help=f"kinds of host; guests are {GUEST_ARCH}")
    given = parser.parse_args()
    for arch in given.arch or HOST_ARCHES:
        print(build_wheel(arch, given.out.absolute()))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
