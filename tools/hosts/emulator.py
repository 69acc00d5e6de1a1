"""The QEMU of another Debian release on this host, without entering its root file system."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def write_emulator(root: Path, program: Path) -> Path:
    """`program` is the QEMU of `root`: run by the loader of `root`, with its libraries, modules and firmware.

    It is a shell script, which costs a few milliseconds in each start: what is compared with it is started so too. Its
    modules lie over this host's, in a mount namespace of its own, which only root can make: asked for all its devices,
    QEMU looks for modules in the folder that it was built for, and aborts at those of another build.
    """
    libraries = root / _LIBRARIES
    argv = [
        *(f"{root}/lib64/ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{libraries}/pulseaudio"),
        f"{root}/usr/bin/qemu-system-x86_64",
        *("-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios"),
    ]
    bind = shlex.join(["mount", "--bind", f"{libraries}/qemu", f"/{_LIBRARIES}/qemu"])
    inner = shlex.quote(f'{bind} && exec {shlex.join(argv)} "$@"')
    program.write_text(f'#!/bin/sh\nexec unshare --mount sh -c {inner} sh "$@"\n')
    program.chmod(0o755)
    return program
