"""Processes that this one began, or those of its descent, and that are nobody's any more.

They are no children of ours, and a program that gives its own an environment of their own, as the agent does, takes
every sign out of that. A limit is left: what a process may put into POSIX message queues, which nobody here uses, is
inherited by each that it starts.
"""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path


class Orphans:
    """Marks this process, and with it all that it starts from now on."""

    def __init__(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1]
        sign = os.getpid() if hard == resource.RLIM_INFINITY else os.getpid() % (hard + 1)
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (sign, hard))
        self._sign = re.compile(rf"^Max msgqueue size +{sign} ", re.MULTILINE)
        self._strangers: set[str] = set()

    def find(self) -> list[int]:
        """Their process ids. Those that have ended and wait for init to reap them are none."""
        ours: dict[int, int] = {}
        names = {name for name in os.listdir("/proc") if name.isdigit()}
        self._strangers &= names
        for name in names - self._strangers:
            # What others start on this host is looked at once: it may be much.
            if not self._is_ours(name):
                self._strangers.add(name)
            elif (parent := _parent_of(name)) is not None:
                ours[int(name)] = parent
        return [pid for pid, parent in ours.items() if pid != os.getpid() and parent not in ours]

    def _is_ours(self, name: str) -> bool:
        try:
            return self._sign.search(Path("/proc", name, "limits").read_text()) is not None
        except OSError:  # it has ended, or is another user's
            return False


def _parent_of(name: str) -> int | None:
    """`None` for one that has ended. proc(5): what follows a name, which may hold anything, is behind its last `)`."""
    try:
        state, parent = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)
