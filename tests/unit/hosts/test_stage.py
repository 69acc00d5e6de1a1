"""What runs on a stage cannot outlive it: by an error, Ctrl-C and SIGKILL alike nothing is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hosts import cache, stage

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = Path(stage.__file__).parents[1]
# This host's own root serves: what is written there goes elsewhere.
LAYERS = [Path("/")]
LIMIT_S = 20


pytestmark = pytest.mark.needs("namespaces")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache.find_folder()


def test_a_command_ends_with_its_status():
    assert stage.run_on(LAYERS, ["sh", "-c", "exit 7"]) == 7


TELL = "id -u; ischroot; echo $?; echo /proc/[0-9]*; pwd; env | grep ^HOME"


def test_it_is_root_and_in_no_chroot_with_a_system_of_its_own(tmp_path):
    told = tmp_path / "told"
    told.mkdir()
    stage.run_on(LAYERS, ["sh", "-c", f"({TELL}) >/told"], kept=told)
    user, chroot, processes, folder, home = (told / "upper" / "told").read_text().splitlines()
    assert (user, chroot, folder, home) == ("0", "1", "/", "HOME=/root")
    assert len(processes.split()) < 6, "it sees processes of this host"


def test_what_is_written_is_kept_apart_or_lost(tmp_path):
    checkout, kept = tmp_path / "checkout", tmp_path / "kept"
    for folder in (checkout, kept):
        folder.mkdir()
    (checkout / "file").write_text("as it was")
    script = "grep -q 'as it was' /src/file && echo other >/src/file && echo x >/written && grep -q other /src/file"
    assert stage.run_on(LAYERS, ["sh", "-c", script], checkout=checkout, kept=kept) == 0
    assert (checkout / "file").read_text() == "as it was"
    assert (kept / "upper" / "written").read_text() == "x\n"
    assert not Path("/written").exists()


# Tells the process that it runs, then waits; what it started in the background is no child of it.
WAITS = "(setsid sleep 1000 &) ; echo started; exec sleep 1000"
RUN = "import sys, pathlib, hosts.stage; sys.exit(hosts.stage.run_on([pathlib.Path('/')], sys.argv[1:]))"


@pytest.fixture
def runner(own_cache) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", RUN, "sh", "-c", WAITS],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TOOLS)},
        start_new_session=True,
    ) as child:
        yield child
        child.kill()


def end(runner, how: str) -> None:
    if how == "Ctrl-C at the terminal":
        os.killpg(runner.pid, signal.SIGINT)
    else:
        runner.send_signal(signal.SIGKILL if how == "SIGKILL" else signal.SIGTERM)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "Ctrl-C at the terminal"])
def test_nothing_outlives(how, runner, own_cache):
    assert runner.stdout.readline() == b"started\n"
    watched = [os.pidfd_open(pid) for pid in processes_of(runner.pid)]
    assert len(watched) >= 4
    end(runner, how)
    # The end of the pipe says that nobody has it any more, the one in the background included.
    assert select.select([runner.stdout], [], [], LIMIT_S)[0]
    assert runner.stdout.read() == b""
    for process in watched:
        assert select.select([process], [], [], LIMIT_S)[0]
        os.close(process)
    assert str(own_cache) not in Path("/proc/mounts").read_text()
    assert [path.name for path in own_cache.iterdir()] == ["stage"]
    assert list((own_cache / "stage").iterdir()) == []


def processes_of(pid: int) -> list[int]:
    """That process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in processes_of(int(child)))]
