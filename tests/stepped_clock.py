"""A wall clock that some processes of a test see, and that jumps when the test says so."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "clock" / "stepped.c"
HOUR_S = 3600


class SteppedClock:
    """The clock of processes that are started with `environ`. `folder` is an empty one of the test's."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "stepped.so", folder / "off"
        compiler = [sys.executable, "-m", "ziglang", "cc"]
        subprocess.run([*compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
        self.step_to(0)
        self.environ = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._file)}

    def step_to(self, off_s: int) -> None:
        """From now on the clock is `off_s` seconds ahead of the host's, or behind where that is negative."""
        _write(self._file, off_s)


def step_own(off_s: int) -> None:
    """From now on that of this process, which was started with such an `environ`, is so far ahead."""
    _write(Path(os.environ["STEPPED_CLOCK"]), off_s)


def _write(path: Path, off_s: int) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(struct.pack("=q", off_s))
