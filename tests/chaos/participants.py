"""Who takes part in an operation, besides the process that asked for it: found among its descendants by name."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from vmfork.cli.forwarder import OPTION

# How the kernel calls them (comm). Before it becomes QEMU, that process is called after the file of the keeper.
NAMES = {
    "keeper": ("vmfork-keeper",),
    "qemu": ("qemu-system-", "keeper-"),
    "copier": ("copier-", "vmfork-copy-end"),
    "broker": ("vmfork-broker", "broker-"),
    "mmdebstrap": ("mmdebstrap",),
    # A Python as ours is, which its command line tells.
    "forwarder": (OPTION,),
}
LIBRARY, SERVER, GUEST, HOST, CLOCK = "library", "server", "guest", "host", "clock"


def descendants(pid: int) -> list[int]:
    """Children of that process, and theirs."""
    found: list[int] = []
    with suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return [*found, *(below for child in found for below in descendants(child))]


def find(participant: str, roots: list[int]) -> list[int]:
    """The processes of that participant below `roots`."""
    names = NAMES[participant]
    return [pid for root in roots for pid in descendants(root) if _called(pid).startswith(names)]


def present(roots: list[int]) -> list[str]:
    """The participants that run now below `roots`."""
    seen = [_called(pid) for root in roots for pid in descendants(root)]
    return [participant for participant, names in NAMES.items() if any(each.startswith(names) for each in seen)]


def strike(pids: list[int], number: signal.Signals) -> list[int]:
    """The signal was sent to each; those it reached."""
    reached = []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            reached.append(pid)
    return reached


def _called(pid: int) -> str:
    try:
        if OPTION.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return OPTION
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
