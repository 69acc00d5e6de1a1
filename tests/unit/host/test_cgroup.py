"""Limits of control groups, of either version, from where a process is up to where it cannot see further."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from vmfork.errors import HostError
from vmfork.host import cgroup, facts
from vmfork.host.group import remove_groups
from vmfork.store import TemplateStore

MIB = 1 << 20
V2, V1 = "cgroup2", "cgroup"


@pytest.fixture
def host(tmp_path):
    """Makes a `/proc/self` and the groups it names: path below the mount -> limit, use, inactive file cache (MiB)."""

    def make(kind: str, groups: dict[str, tuple[int | str, int, int]], *, path: str, root: str = "/") -> Path:
        proc, mounted = tmp_path / "proc", tmp_path / "mounted"
        proc.mkdir()
        line = f"0::{path}" if kind == V2 else f"4:memory,hugetlb:{path}"
        (proc / "cgroup").write_text(f"9:cpu:/elsewhere\n{line}\n")
        options = "rw,memory,hugetlb" if kind == V1 else "rw,nsdelegate"
        (proc / "mountinfo").write_text(
            "22 1 0:20 / /proc rw - proc proc rw\n"
            f"36 31 0:33 / {tmp_path}/cpu rw,relatime - cgroup cgroup rw,cpu\n"
            f"35 31 0:32 {root} {mounted} rw,relatime shared:9 - {kind} {kind} {options}\n"
        )
        names = ("memory.max", "memory.current", "inactive_file")
        if kind == V1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for name, (limit, use, cache) in groups.items():
            group = mounted / name
            group.mkdir(parents=True, exist_ok=True)
            (group / names[0]).write_text(f"{limit if isinstance(limit, str) else limit * MIB}\n")
            (group / names[1]).write_text(f"{use * MIB}\n")
            (group / "memory.stat").write_text(f"anon 1\n{names[2]} {cache * MIB}\nslab 2\n")
        return proc

    return make


def left_bytes(*, proc):
    room = cgroup.find_memory_room(proc=proc)
    return None if room is None else room.left


@pytest.mark.parametrize("kind", [V2, V1])
def test_the_tightest_group_on_the_way_up_counts(host, kind) -> None:
    proc = host(kind, {"a": (1000, 300, 0), "a/b": (800, 50, 0), "c": (1, 1, 0)}, path="/a/b")
    assert left_bytes(proc=proc) == 700 * MIB


@pytest.mark.parametrize("kind", [V2, V1])
def test_cache_that_is_given_back_is_not_counted_as_used(host, kind) -> None:
    assert left_bytes(proc=host(kind, {"a": (100, 90, 40)}, path="/a")) == 50 * MIB


def test_a_group_above_its_limit_has_nothing_left(host) -> None:
    assert left_bytes(proc=host(V2, {"a": (100, 130, 10)}, path="/a")) == 0


def test_no_limit_and_no_such_file_limit_nothing(host) -> None:
    assert left_bytes(proc=host(V2, {"a": ("max", 130, 10)}, path="/a/b/c")) is None


@pytest.mark.parametrize(("path", "root"), [("/docker/1", "/docker/1"), ("/", "/"), ("/../../x", "/")])
def test_in_a_container_the_mount_is_what_it_may_see(host, path, root) -> None:
    assert left_bytes(proc=host(V2, {"": (512, 12, 0)}, path=path, root=root)) == 500 * MIB


def test_without_control_groups_nothing_is_limited(tmp_path) -> None:
    assert left_bytes(proc=tmp_path) is None


@pytest.mark.parametrize("kind", [V2, V1])
def test_the_tightest_number_of_tasks_on_the_way_up_counts(tmp_path, kind) -> None:
    proc, mounted = tmp_path / "proc", tmp_path / "mounted"
    proc.mkdir()
    (proc / "cgroup").write_text("0::/a/b\n" if kind == V2 else "8:pids:/a/b\n4:memory:/elsewhere\n")
    options = "rw" if kind == V2 else "rw,pids"
    (proc / "mountinfo").write_text(f"35 31 0:32 / {mounted} rw - {kind} {kind} {options}\n")
    (mounted / "a" / "b").mkdir(parents=True)
    for name, most, now in (("a", "100", 70), ("a/b", "max", 5)):
        (mounted / name / "pids.max").write_text(f"{most}\n")
        (mounted / name / "pids.current").write_text(f"{now}\n")
    assert cgroup.count_tasks_left(proc=proc) == 30
    (mounted / "a" / "pids.current").write_text("120\n")
    assert cgroup.count_tasks_left(proc=proc) == 0
    own = mounted / "a" / "b" / "memory.pressure"
    own.touch()
    assert cgroup.locate_pressure(proc=proc) == (str(own) if kind == V2 else None)


def test_the_largest_number_of_version_1_is_no_limit(host) -> None:
    assert cgroup.find_memory_room(proc=host(V1, {"a": (str(2**63 - 4096), 130, 10)}, path="/a")) is None


@pytest.fixture
def real_group():
    """A group of this test's own below ours, with its limit file; a named skip where none can be made."""
    for kind, group in cgroup._groups(Path("/proc/self")):
        own = Path(group, f"vmfork-test-{os.getpid()}")
        limit = own / cgroup._FILES[kind][0]
        try:
            own.mkdir()
            limit.write_text(str(64 * MIB))
        except OSError:
            if own.exists():
                own.rmdir()
            continue
        yield own
        remove_groups([str(own)])  # the last process leaves it a moment after its end was told
        return
    need("memory-cgroup", found=False)


TELL = """
import os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from vmfork.host import facts
print(facts.available_memory_bytes())
"""


def test_a_real_limit_is_seen_from_inside(real_group) -> None:
    told = subprocess.run([sys.executable, "-c", TELL, real_group], capture_output=True, text=True, check=True)
    assert 0 < int(told.stdout) <= 64 * MIB < facts.available_memory_bytes()


ASK = """
import asyncio, os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from vmfork.admission.charge import Charge
from vmfork.config import Limits
from vmfork.errors import NoRoom
from vmfork.machine.room import make_folder
fork = Charge.of_fork(memory_mib=256, emulator_mib=392, cpus=1, overcommit=4)
try:
    asyncio.run(make_folder(Path(sys.argv[2], "vms"), "0123456789ab", fork, Limits()))
except NoRoom as error:
    print(error.details())
"""


def test_a_machine_that_does_not_fit_into_a_real_group_is_refused(real_group, tmp_path) -> None:
    """64 MiB are the group's limit, of which a twentieth stays its own; the host has far more."""
    asked = [sys.executable, "-c", ASK, real_group, tmp_path]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    rows = {line.split(" MiB")[0].rsplit(None, 1)[0].strip(): line.split() for line in told.splitlines()}
    assert int(rows["available"][1]) <= 64
    assert rows["- reserved"][2] == "3"
    assert rows["needed"][1] == "162"


async def test_a_template_that_does_not_fit_into_the_group_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cgroup, "find_memory_room", lambda: cgroup.MemoryRoom(1000 * MIB, 100 * MIB))
    with pytest.raises(HostError, match="not enough memory: the template needs 136 MiB, 100 MiB can be had") as short:
        await TemplateStore(tmp_path / "templates").stage("one", memory_bytes=128 * MIB)
    assert short.value.hint
    assert not list((tmp_path / "templates").iterdir())
