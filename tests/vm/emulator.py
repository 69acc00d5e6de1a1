"""An emulator that is upgraded as a distribution does it: the file under one path is another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Emulator:
    """The emulator `real`, under another path, that says what version it is."""

    def __init__(self, path: Path, real: Path, release: str) -> None:
        self.path, self._real, self._release = path, real, release
        self.install("one")

    def install(self, mark: str) -> None:
        self._replace(f'[ "$1" = --version ] && exec echo "QEMU emulator version {self._release} ({mark})"')

    def break_it(self) -> None:
        self._replace('[ "$1" = --version ] || exit 1')

    def _replace(self, line: str) -> None:
        new = self.path.with_name("new")
        new.write_text(f'#!/bin/sh\n{line}\nexec {self._real} "$@"\n')
        new.chmod(0o755)
        os.replace(new, self.path)
