"""What doctor says of the things that images are built with, to a user whom this host lets have no namespaces."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from vmfork.cli import doctor
from vmfork.config import VMConfig
from vmfork.errors import HostError
from vmfork.machine import scratch

# A user namespace with one id, in which no other can be made: what such a host is to an ordinary user.
CONFINED = (
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    'echo 0 > /proc/sys/user/max_user_namespaces; "$@"',
    "sh",
)


@pytest.mark.needs("namespaces")
def test_a_user_without_namespaces_is_told_before_a_build(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))  # with no image in it: where one is, the lack is a note
    command = [*CONFINED, sys.executable, "-m", "vmfork", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["namespaces"]["level"] == "fail"
    assert "user.max_user_namespaces" in checks["namespaces"]["todo"]
    assert done.returncode == 1
    command[-2:] = ["image", "build", "mine"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert failed.returncode == 1
    assert checks["namespaces"]["todo"] in failed.stderr


@pytest.mark.parametrize(("built", "level"), [(True, "note"), (False, "fail")])
def test_where_the_image_is_there_a_lack_is_a_note(monkeypatch, built, level) -> None:
    def lacking() -> None:
        raise HostError("it is not there", hint="install it")

    for name in ("find_mmdebstrap", "choose_namespaces", "check_library", "find_sqfstar"):
        monkeypatch.setattr(doctor, name, lacking)
    checks = doctor._check_building(built=built)
    assert [(check.name, check.level, check.todo) for check in checks] == [
        *((name, level, "install it") for name in ("mmdebstrap", "namespaces", "liblz4")),
        ("sqfstar", "note", "install it"),  # only for roots that do not lie in memory
    ]


@pytest.mark.parametrize(("disk_mib", "level"), [(0, "note"), (64, "fail")])
def test_what_makes_disks_fails_only_where_machines_have_one(monkeypatch, disk_mib, level) -> None:
    monkeypatch.setattr(scratch, "PATH", "/nowhere")
    check = doctor._check_disk(VMConfig(disk_mib=disk_mib))
    assert (check.name, check.level) == ("mke2fs", level)
    assert "mke2fs was not found" in check.found
    assert "apt-get install e2fsprogs" in check.todo


def test_what_makes_disks_is_found_where_a_users_own_path_does_not_lead(monkeypatch, tmp_path) -> None:
    program = tmp_path / "mke2fs"
    program.touch(mode=0o755)
    monkeypatch.setattr(scratch, "PATH", str(tmp_path))
    check = doctor._check_disk(VMConfig())
    assert (check.level, check.found) == ("ok", str(program))
