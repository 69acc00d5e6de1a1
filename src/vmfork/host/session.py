"""A session of processes that ends as a whole: what a child started ends with it (setsid(2), `start_new_session`)."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

from vmfork.host.process import read_stat
from vmfork.host.wait import wait_readable


async def kill_session(leader: int) -> None:
    """Every process of the session was killed and has ended; the parent of each has yet to reap it.

    `leader` is a child that was not reaped yet, so that its pid is still the session's.
    """
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    # Signals are delivered a moment later, and until then a process may write on. Members that made a process group of
    # their own are found here too.
    while pids := find_members(leader):
        await asyncio.gather(*(_kill_member(pid, leader) for pid in pids))


def find_members(leader: int) -> list[int]:
    """The pids of the session, zombies left out: they do nothing any more."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _is_member(pid, leader)]


def _is_member(pid: int, leader: int) -> bool:
    fields = read_stat(pid)  # state, parent, group, session
    return bool(fields) and int(fields[3]) == leader


async def _kill_member(pid: int, leader: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The pidfd pins the process: what is a member now is what gets the signal, whoever has the pid later.
        if _is_member(pid, leader):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            await wait_readable(fd)
    finally:
        os.close(fd)
