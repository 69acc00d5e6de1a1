"""What the tests of the store look at from outside: mounts, descriptors, child processes."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

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


def run_child(body: Callable[[], object]) -> int:
    """The pid of a child process that runs `body` and ends, with status 1 where it raised."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        body()
        code = 0
    except BaseException:  # noqa: BLE001 - pytest's own failures are none of Exception
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code_of(pid: int) -> int:
    """The exit status of a child that has ended, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
