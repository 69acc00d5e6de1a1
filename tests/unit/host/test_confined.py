"""What a confined program is kept from; in all else it is a program like any other. The keeper is the real one."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from vmfork.host.keeper import KeptProcess

pytestmark = pytest.mark.usefixtures("nothing_left")

TRIES = """
import errno, os, threading
thread = threading.Thread(target=lambda: print("thread", "done"))
thread.start(); thread.join()
for name, attempt in {
    "fork": os.fork,
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "descriptor": lambda: os.execve(os.open("/bin/true", os.O_RDONLY), ["true"], {}),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "user": lambda: os.setuid(os.getuid()),
    "session": os.setsid,
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 19),
    "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
}.items():
    try:
        done = attempt()
    except OSError as error:
        done = errno.errorcode[error.errno]
    if done == 0 and name == "fork":
        os._exit(0)
    print(name, "done" if done in (None, 0) or isinstance(done, int) else done, flush=True)
"""


def run(log, tmp_path, *argv: str, confined: bool) -> KeptProcess:
    return KeptProcess.start(argv, log_fd=log[1], listen_at=tmp_path / "keeper.sock", confined=confined)


def read(log) -> str:
    return os.read(log[0], 65536).decode()


async def test_it_starts_nothing_and_becomes_nobody_else(log, tmp_path) -> None:
    process = run(log, tmp_path, sys.executable, "-c", TRIES, confined=True)
    assert await process.wait() == 0
    await process.aclose()
    said = dict(line.rsplit(" ", 1) for line in read(log).splitlines())
    # A program is told that there is no such call once nobody is left to ask.
    assert said == {
        "thread": "done", "fork": "EPERM", "spawn": "EPERM", "exec": "ENOSYS", "descriptor": "EPERM",
        "user": "EPERM", "session": "EPERM", "priority": "EPERM", "affinity": "EPERM",
    }  # fmt: skip


async def test_without_it_a_program_may_do_all_that(log, tmp_path) -> None:
    process = run(log, tmp_path, sys.executable, "-c", TRIES, confined=False)
    assert await process.wait() == 0
    await process.aclose()
    said = dict(line.rsplit(" ", 1) for line in read(log).splitlines())
    assert said["fork"] == said["spawn"] == "done"
    assert "exec" not in said  # it was another program by then


async def test_a_confined_program_that_is_not_there_ends_as_any_other(log, tmp_path) -> None:
    process = run(log, tmp_path, "/no/such/program", confined=True)
    assert await process.wait() == 127
    await process.aclose()
    assert "cannot run /no/such/program" in read(log)


async def test_closing_ends_it_at_once(log, tmp_path) -> None:
    # By its path: the filter lets it be started once, and a search for it would use that up.
    process = run(log, tmp_path, shutil.which("sleep"), "1000", confined=True)
    await process.aclose()
    assert process.has_ended
