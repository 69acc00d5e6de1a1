"""`vmfork gc` removes and shows what dead processes left, and names what is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from vmfork.cli.main import main
from vmfork.config import find_places
from vmfork.host.delegation import find_delegation
from vmfork.hypervisor.base import Hardware
from vmfork.machine.allotment import allot
from vmfork.machine.folder import VMFolder, new_vm_id

LIMIT_S = 20
HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=64)


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))
    return find_places()


@pytest.fixture
def left(places):
    """One folder of each kind that a killed process leaves."""
    vm = new_vm_id()
    VMFolder.create(places.vms, vm).release()
    generation = places.templates / "web" / "0123456789abcdef"
    staging = places.images / ".staging-0123456789abcdef"
    image = places.images / ("a" * 64)
    empty = places.templates / "gone"
    for path in (generation, staging, image, places.images / "names"):
        path.mkdir(parents=True)
    empty.mkdir(mode=0o700)
    (places.templates / "web" / "building").touch()
    (places.images / "locks").mkdir()
    return {str(path) for path in (places.vms / vm, generation, empty, staging, image)}


def test_a_new_instance_has_nothing_to_remove(places, capsys):
    assert main(["gc"]) == 0
    assert capsys.readouterr().out == "removed 0 folders\n"


def test_a_dry_run_shows_and_removes_nothing(left, places, capsys):
    assert main(["gc", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], set(told["removed"]), told["left"]) == (True, left, [])
    assert main(["gc", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], set(told["removed"])) == (False, left)
    assert main(["gc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert list(places.vms.iterdir()) == list(places.templates.iterdir()) == []


def test_a_machine_stays_and_is_named_whose_control_group_another_process_is_in(places, capsys):
    parents = find_delegation().parents
    need("control-groups", found=len(parents) > 0)
    folder = VMFolder.create(places.vms, new_vm_id())
    groups = folder.make_groups(parents, allot(HARDWARE, cpu_weight=100))
    folder.release()
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        Path(groups[0], "cgroup.procs").write_text(str(stranger.pid))
        assert main(["gc"]) == 0
        said = capsys.readouterr()
        assert (said.out, str(folder.path) in said.err) == ("removed 0 folders\n", True)
        assert main(["gc", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["removed"], told["kept"]) == ([], [str(folder.path)])
        stranger.kill()
    end = time.monotonic() + LIMIT_S
    while folder.path.exists():
        assert main(["gc"]) == 0
        assert time.monotonic() < end
    assert not any(map(os.path.exists, groups))


def test_what_is_not_ours_is_named_and_stays(places, capsys):
    theirs = [folder / "mine" for folder in (places.vms, places.templates, places.images)]
    for path in theirs:
        path.mkdir(parents=True)
        (path / "data").touch()
    assert main(["gc"]) == 0
    told = capsys.readouterr().err
    assert all(f"note: left alone, not vmfork's: {path}\n" in told for path in theirs)
    assert all((path / "data").exists() for path in theirs)
