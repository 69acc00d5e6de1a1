"""The QEMU of another Debian release on this host, without entering its root file system."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def write_emulator(root: Path, program: Path) -> Path:
    """`program` is the QEMU of `root`: run by the loader of `root`, with its libraries, modules and firmware.

    It is a shell script, which costs a millisecond and two in each start: what is compared with it is started so too.
    Modules that `root` has not are looked for in the folder that QEMU was built for, this host's, whose are of another
    build: vmfork asks for none of them.
    """
    libraries = root / _LIBRARIES
    argv = [
        # Not by its name in /lib64: Debian 12 has a link with a whole path there, which leads to this host's.
        *(f"{libraries}/ld-linux-x86-64.so.2", "--library-path", f"{libraries}:{libraries}/pulseaudio"),
        f"{root}/usr/bin/qemu-system-x86_64",
        *("-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios"),
    ]
    modules = shlex.quote(f"QEMU_MODULE_DIR={libraries}/qemu")
    program.write_text(f'#!/bin/sh\nexport {modules}\nexec {shlex.join(argv)} "$@"\n')
    program.chmod(0o755)
    return program
