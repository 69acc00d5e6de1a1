"""What the tests of the store look at from outside: mounts and descriptors."""

from __future__ import annotations

import os
from pathlib import Path

MEMORY_BYTES = 1024 * 1024
STATE = b"device state " * 100


def mounts_below(folder: Path) -> list[str]:
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(f"{folder}/")]


def descriptors_below(folder: Path) -> list[str]:
    """What this process has open there; files that were removed meanwhile too."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except FileNotFoundError:
            continue  # the descriptor of this listing itself
    return [link for link in links if link.startswith(f"{folder}/")]
