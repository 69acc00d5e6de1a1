"""An instance of vmfork of the test run's own, and the proof at the end that nothing of it is left."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from vmfork.config import find_places
from vmfork.machine.folder import sweep_vms

HOME_KEY = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One HOME for all the processes of a parallel run: one of them builds the image, the others wait for it."""
    if config.getoption("numprocesses", None) and not os.environ.get("VMFORK_TEST_HOME"):
        config.stash[HOME_KEY] = os.environ["VMFORK_TEST_HOME"] = tempfile.mkdtemp(prefix="vmfork-test-home-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if (home := config.stash.get(HOME_KEY, None)) is not None:
        shutil.rmtree(home)


@pytest.fixture(scope="session", autouse=True)
def instance():
    """HOME and RUNTIME are folders of this process of the run. VMFORK_TEST_HOME keeps the image between runs."""
    runtime = Path(tempfile.mkdtemp(prefix="vmfork-test-", dir="/dev/shm"))
    kept = os.environ.get("VMFORK_TEST_HOME")
    home = Path(kept or tempfile.mkdtemp(prefix="vmfork-test-home-"))
    os.environ["VMFORK_HOME"], os.environ["VMFORK_RUNTIME_DIR"] = str(home), str(runtime)
    yield find_places()
    places = find_places()
    vms = sorted(places.vms.iterdir()) if places.vms.is_dir() else []
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(runtime) in line]
    processes = [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and belongs_to(pid, runtime)]
    sweep_vms(places.vms)
    shutil.rmtree(runtime, ignore_errors=True)
    if not kept:
        shutil.rmtree(home, ignore_errors=True)
    assert (vms, mounts, processes) == ([], [], [])


def belongs_to(pid: Path, runtime: Path) -> bool:
    """A child of this run: its environment names the folder, which QEMU's command line, all descriptors, does not."""
    try:
        return os.fsencode(f"VMFORK_RUNTIME_DIR={runtime}\0") in (pid / "environ").read_bytes()
    except OSError:
        return False
