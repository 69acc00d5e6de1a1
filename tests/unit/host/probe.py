"""What this process has open, and what is mounted."""

from __future__ import annotations

import os
from pathlib import Path


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def mount_points() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
