"""The rules that hold for every test catch who breaks them: tried on a file of tests that each break one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules.capabilities import CAPABILITIES, need

TESTS = Path(__file__).parents[2]

BREAKING = """
import asyncio, os, subprocess, warnings
import pytest
import tests.rules.capabilities, tests.rules.leaks
from tests.rules.capabilities import Capability, need

tests.rules.leaks.GRACE_S = 0.2
for name in ("lz4", "numpy"):
    tests.rules.capabilities.CAPABILITIES[name] = Capability(f"no {name} here", lambda: False)
kept = []

def test_descriptor():
    os.open("/", os.O_RDONLY)

def test_process():
    kept.append(subprocess.Popen(["sleep", "1000"]))

def test_orphan():
    subprocess.run(["/bin/sh", "-c", "setsid sleep 1001 </dev/null >/dev/null 2>&1 &"], env={"PATH": os.defpath})

def test_folder(instance):
    (instance.vms / "abc").mkdir(parents=True)

def test_clean(instance):
    (instance.vms / "abc").rmdir()

def test_warning():
    warnings.warn("old", DeprecationWarning)

@pytest.mark.limit_s(0.2)
async def test_awaits():
    await asyncio.sleep(1000)

@pytest.mark.limit_s(0.2)
def test_spins():
    while True:
        pass

@pytest.mark.needs("lz4")
def test_marked():
    raise AssertionError

def test_asks():
    need("numpy")
"""

WITH_A_MACHINE = """
import asyncio
from tests.unit.hypervisor.conftest import binary, folder, launch, start, until

async def test_closed(start):
    machine = start()
    await machine.pause()
    await machine.aclose()
    raise AssertionError("after its end")

async def test_running(start, until):
    machine = start()
    await until(lambda: "hello" in machine.console_tail())
    raise AssertionError("while it runs")
"""


def run_pytest(folder: Path, text: str, *arguments: str) -> str:
    """What pytest says of a file with `text`, under the rules of this very run."""
    file = folder / "test_inner.py"
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", "pyproject.toml", "--rootdir", str(folder)]
    command += ["-p", "no:cacheprovider", "--tb=short", *arguments, str(file)]
    env = {key: value for key, value in os.environ.items() if key != "VMFORK_TEST_GUARANTEED"}  # what CI guarantees
    done = subprocess.run(command, cwd=TESTS.parent, env=env, capture_output=True, text=True, check=False, timeout=170)
    return done.stdout + done.stderr


def outcomes(told: str) -> set[str]:
    return set(re.findall(r"^(?:FAILED|ERROR) \S+::(\w+)", told, re.MULTILINE))


@pytest.fixture(scope="module")
def spent(tmp_path_factory) -> Path:
    """Where the run of `broken` writes what its files took."""
    return tmp_path_factory.mktemp("spent") / "files.json"


@pytest.fixture(scope="module")
def broken(tmp_path_factory, spent) -> str:
    return run_pytest(tmp_path_factory.mktemp("broken"), BREAKING, "--files", "1", "--files-to", str(spent))


def test_who_leaves_something_fails_and_nobody_else(broken) -> None:
    culprits = {"test_descriptor", "test_process", "test_orphan", "test_folder"}
    assert outcomes(broken) == culprits | {"test_warning", "test_awaits", "test_spins"}
    assert re.search(r"descriptor \d+ /\n", broken)
    assert re.search(r"process \d+: sleep 1000\n", broken)
    assert re.search(r"process \d+: sleep 1001\n", broken)
    assert re.search(r"machine's folder \S+/abc\n", broken)


def test_who_takes_too_long_fails_and_shows_where_it_was(broken) -> None:
    assert broken.count("took longer than 0.2 s") >= 2
    assert "await asyncio.sleep(1000)" in broken
    assert "while True" in broken


def test_what_each_file_took_is_told_and_written(broken, spent) -> None:
    ((name, took),) = json.loads(spent.read_text())["files"].items()
    assert (name, took["tests"]) == ("test_inner.py", 9)  # all but the one that its mark skips
    # Two wait for 0.2 s, and one of them uses the processor meanwhile.
    assert took["clock_s"] >= 0.4
    assert took["cpu_s"] > 0
    assert re.search(rf"^ *\d+\.\d s +\d+\.\d s +9  {name}: \d+\.\d s test_\w+", broken, re.MULTILINE)
    assert re.search(r"1 files; ended: all after \d+ s", broken)


def test_what_is_missing_is_a_named_skip(broken) -> None:
    assert "2 skipped" in broken
    assert "no lz4 here" in broken
    assert "no numpy here" in broken


def test_what_is_guaranteed_and_missing_fails(tmp_path) -> None:
    told = run_pytest(tmp_path, BREAKING, "--guaranteed", "lz4,numpy", "-k", "marked or asks")
    assert outcomes(told) == {"test_marked", "test_asks"}
    assert "no lz4 here, and 'lz4' is guaranteed" in told


def test_an_unknown_capability_is_refused(tmp_path) -> None:
    assert "no capability is called nonsense" in run_pytest(tmp_path, BREAKING, "--guaranteed", "nonsense")


def test_what_the_host_has_skips_nothing() -> None:
    need("openssl-3")


def test_a_failed_tests_machines_are_shown(tmp_path) -> None:
    need("qemu")
    told = run_pytest(tmp_path, WITH_A_MACHINE)
    assert outcomes(told) == {"test_closed", "test_running"}
    closed, running = told.split("___ test_running ___")
    assert "[arguments]\n" in closed
    assert "-machine" in closed
    assert "-> stop {}" in closed
    assert "[exit status]\n-9" in closed
    assert re.search(r"\[console\]\n(.*\n)?.*hello", running)
    assert "[exit status]\nnone: it runs" in running


def test_every_skip_goes_through_the_table() -> None:
    """So that the switch sees it."""
    texts = {path: path.read_text() for path in TESTS.rglob("*.py") if path.parent.name != "rules"}
    assert [str(path) for path, text in texts.items() if re.search(r"\bskip(if)?\(|importorskip|xfail", text)] == []
    marks = [mark for text in texts.values() for mark in re.findall(r"needs\(([^)]*)\)", text)]
    assert {name for mark in marks for name in re.findall(r'"([^"]+)"', mark)} <= CAPABILITIES.keys()


FAILING = """
import os
from pathlib import Path
import pytest
import tests.rules.leaks

tests.rules.leaks.GRACE_S = 0.2

def seen(name):
    path = Path(__file__).with_name(name)
    there = path.exists()
    path.touch()
    return there

def test_well():
    assert True

@pytest.mark.parametrize("number", range(3))
def test_by_chance(number):
    assert seen(f"chance-{number}")

def test_always():
    assert False

def test_leaves():
    os.open("/", os.O_RDONLY)
"""


@pytest.mark.parametrize(
    ("chosen", "status", "tried"),
    [
        ("well", 0, 0),
        ("chance", 0, 3),
        ("always", 1, 1),
        ("chance or always", 1, 0),  # four are too many
        ("leaves", 1, 0),
        ("well or leaves or always", 1, 0),
    ],
)
def test_few_that_failed_are_tried_once_more(tmp_path, chosen, status, tried) -> None:
    (tmp_path / "test_inner.py").write_text(FAILING)
    house = TESTS.parent
    env = {**os.environ, "PYTHONPATH": str(house)}
    env["PYTEST_ADDOPTS"] = f"-p tests.conftest -p no:cacheprovider -c {house}/pyproject.toml --rootdir {tmp_path}"
    env.pop("VMFORK_TEST_GUARANTEED", None)
    command = [house / "tools" / "again", sys.executable, "-m", "pytest", "-k", chosen, "test_inner.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=170)
    told = done.stdout + done.stderr
    assert done.returncode == status, told
    assert told.count("PASSED ONLY WHEN TRIED AGAIN") == (tried if status == 0 else 0)
    assert len(re.findall(r"^=+ .* in [\d.]+s", told, re.MULTILINE)) == (2 if tried else 1)
