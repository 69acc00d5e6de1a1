"""Real groups of this host: a program in them is limited, and they are gone with it, whoever is killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from errno import EAGAIN
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from tests.unit.host.test_keeper import wait_text
from tests.unit.system_calls import called, declared
from vmfork.errors import HostError
from vmfork.host import group, keeper
from vmfork.host.delegation import V1, V2, Parent, find_delegation
from vmfork.host.group import Allotment, is_group_of, locate_groups, make_groups, remove_groups
from vmfork.host.jail import Jail
from vmfork.host.keeper import REFUSED_TEXT, KeptProcess

MIB = 1 << 20
LITTLE = Allotment(memory_bytes=64 * MIB, cpus=1, cpu_weight=50, tasks=8)
LIMIT_S = 20


@pytest.fixture
def folders():
    """Groups of this test's own, limited to `LITTLE`; a named skip where none can be made."""
    parents = find_delegation().parents
    limited = {controller for parent in parents for controller in parent.controllers}
    need("control-groups", found=limited == {"memory", "cpu", "pids"})
    name = f"test-{os.getpid()}"
    try:
        make_groups(parents, name, LITTLE)
        yield locate_groups(parents, name)
    finally:
        remove_groups(locate_groups(parents, name))


def start(log, folder: Path, groups: tuple[str, ...], *argv: str) -> KeptProcess:
    jail = Jail(groups=groups)
    return KeptProcess.start(argv, log_fd=log[1], listen_at=folder / "keeper.sock", jail=jail, env=dict(os.environ))


def gone(folders: tuple[str, ...]) -> bool:
    return not any(map(os.path.exists, folders))


async def test_a_program_is_put_into_its_groups(log, tmp_path, folders) -> None:
    process = start(log, tmp_path, folders, "sleep", "1000")
    await wait_in(process.pid, folders)
    await process.aclose()


async def run(process: KeptProcess) -> int | None:
    """How it ended; it and its keeper are gone."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await process.wait()
    finally:
        await process.aclose()


async def wait_in(pid: int, folders: tuple[str, ...]) -> None:
    """The keeper has put the process into all of them. Nothing tells when."""
    async with asyncio.timeout(LIMIT_S):
        while not all(str(pid) in Path(folder, "cgroup.procs").read_text().split() for folder in folders):
            await asyncio.sleep(0.01)


OWNER = """
import asyncio, os, sys
from pathlib import Path
from vmfork.host import keeper
from vmfork.host.jail import Jail
keeper.find_keeper = lambda: Path(sys.argv[1])
async def main():
    jail = Jail(groups=tuple(sys.argv[3:]))
    argv = ["/bin/sleep", "1000"]
    process = keeper.KeptProcess.start(argv, log_fd=2, listen_at=Path(sys.argv[2]), jail=jail)
    print("started", flush=True)
    await process.wait()
asyncio.run(main())
"""


def kill_an_owner(binary: Path, folder: Path, groups: tuple[str, ...]) -> None:
    """One was killed, and its program and the keeper have ended: nobody has what they say it on open any more."""
    command = [sys.executable, "-c", OWNER, binary, folder / "keeper.sock", *groups]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        assert owner.stdout.readline() == b"started\n"
        owner.kill()
        owner.stderr.read()


def test_they_are_gone_when_the_owner_was_killed(tmp_path, folders) -> None:
    kill_an_owner(keeper.find_keeper(), tmp_path, folders)
    assert gone(folders)


# A program that waits until it is in its groups, and then takes what it is given no more of.
WAIT = """
import os, sys, time
from pathlib import Path
while not all(str(os.getpid()) in Path(folder, "cgroup.procs").read_text().split() for folder in sys.argv[1:]):
    time.sleep(0.01)
"""
FILL = f"{WAIT}\nfilled = bytearray(128 << 20)"
MANY = f"""{WAIT}
import threading
event = threading.Event()
threads = [threading.Thread(target=event.wait, daemon=True) for _ in range(20)]
try:
    for thread in threads:
        thread.start()
except RuntimeError:  # it cannot start
    os._exit({EAGAIN})
os._exit(0)
"""


async def test_more_memory_than_it_may_have_ends_it_alone(log, tmp_path, folders) -> None:
    assert await run(start(log, tmp_path, folders, sys.executable, "-c", FILL, *folders)) == -9


async def test_no_more_processes_than_it_may_have_are_started(log, tmp_path, folders) -> None:
    assert await run(start(log, tmp_path, folders, sys.executable, "-c", MANY, *folders)) == EAGAIN


def test_what_each_version_is_told(tmp_path) -> None:
    """The arithmetic; that the kernel takes it, the tests above show on this host."""
    both = (Parent(str(tmp_path / "2"), V2, ("memory", "cpu", "pids")), Parent(str(tmp_path / "1"), V1, ("cpu",)))
    values = [group._values(parent, LITTLE) for parent in both]
    assert values[0] == {
        "memory.max": str(64 * MIB),
        "cpu.weight": "50",
        "cpu.max": "100000 100000",
        "pids.max": "8",
    }
    assert values[1] == {"cpu.shares": "512", "cpu.cfs_quota_us": "100000"}


async def test_a_group_that_is_not_there_ends_it_and_is_named(log, tmp_path) -> None:
    assert await run(start(log, tmp_path, ("/no/such/group",), "sleep", "1000")) == -9
    assert f"{REFUSED_TEXT}a control group of its own: No such file" in os.read(log[0], 65536).decode()


def test_one_that_cannot_be_made_is_told_with_what_to_do(tmp_path) -> None:
    with pytest.raises(HostError, match="cannot limit a machine by the control group") as refused:
        make_groups((Parent(str(tmp_path / "gone"), V2, ("pids",)),), "one", LITTLE)
    assert "control_groups" in refused.value.hint


def test_only_what_was_made_under_the_name_counts() -> None:
    assert is_group_of("/sys/fs/cgroup/vmfork-0123456789ab", "0123456789ab")
    for other in ("/sys/fs/cgroup/vmfork-other", "vmfork-0123456789ab", "/sys/fs/cgroup/0123456789ab", "/"):
        assert not is_group_of(other, "0123456789ab")


@pytest.mark.needs("strace")
def test_groups_are_joined_and_removed_by_the_system_calls_that_are_declared(tmp_path, folders) -> None:
    trace, traced = tmp_path / "trace", tmp_path / "traced"
    traced.write_text(f'#!/bin/sh\nexec strace -D -f -o {trace} {keeper.find_keeper()} "$@"\n')
    traced.chmod(0o755)
    kill_an_owner(traced, tmp_path, folders)
    wait_text(trace, "rmdir(")
    assert {"open", "write", "rmdir"} <= called(trace) & declared("keeper")["grouped"]
