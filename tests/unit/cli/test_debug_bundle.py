"""`vmfork debug-bundle` tells of a machine whatever is left of it, and nothing that is nobody's business."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile

import pytest

from vmfork.admission.charge import Charge, Ticket
from vmfork.adopt.identity import Identity
from vmfork.cli.main import main
from vmfork.config import Limits, find_places
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine.facts import MachineFacts
from vmfork.machine.folder import VMFolder, VMRecord, new_vm_id
from vmfork.machine.origin import Origin
from vmfork.machine.plan import KERNEL_ARGS

SECRET = "hunter2-s3cret"
HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("VMFORK_VM_ACCEL", "tcg")
    monkeypatch.chdir(tmp_path)
    return find_places()


@pytest.fixture
def machine(places):
    """A machine with its folder, a stand-in for its process, and a secret in every place that may have one."""
    vm_id = new_vm_id()
    folder = VMFolder.create(
        places.vms, vm_id, Ticket(charge=Charge(share_mib=128, most_mib=320, tasks=6), limits=Limits())
    )
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "TOKEN": SECRET}) as child:
        facts = MachineFacts(
            identity=Identity.fresh(vm_id, template="web"),
            hardware=HARDWARE,
            image="default",
            origin=Origin(kind="booted", reason="asked", detail=f"because {SECRET}"),
        )
        folder.record(VMRecord(facts=facts, process=ProcessIdentity.of(child.pid), owner_pid=os.getpid()))
        folder.write_handle(json.dumps({"token": SECRET}).encode())
        (folder.path / "console.log").write_text(f"[    0.0] Command line: {KERNEL_ARGS} key={SECRET}\nbooted\n")
        (folder.path / "qemu.log").write_text("qemu: a warning\n")
        yield folder
        child.kill()
    folder.close()


def make(vm_id: str, capsys, *options: str) -> tuple[dict, dict[str, bytes]]:
    """What the command printed, and the members of its bundle."""
    assert main(["debug-bundle", vm_id, "--json", *options]) == 0
    told = json.loads(capsys.readouterr().out)
    with tarfile.open(told["path"]) as tar:
        members = {each.name: tar.extractfile(each).read() for each in tar}
    return told, members


def test_a_machine_that_runs_is_told_with_host_and_settings(machine, places, tmp_path, capsys) -> None:
    told, members = make(machine.path.name, capsys, "-o", str(tmp_path / "out.tar.gz"))
    assert told["path"] == str(tmp_path / "out.tar.gz")
    assert (tmp_path / "out.tar.gz").stat().st_mode & 0o777 == 0o600
    assert told["members"] == [*members]
    assert json.loads(members["machine/record.json"])["template"] == "web"
    assert json.loads(members["machine/ticket.json"])["charge"]["share_mib"] == 128
    assert json.loads(members["machine/process.json"])["alive"] is True
    assert members["machine/qemu.log"] == b"qemu: a warning\n"
    assert members["machine/console.log"].endswith(b"booted\n")
    settings = json.loads(members["settings.json"])["settings"]
    assert settings["vm.accel"] == {"value": "tcg", "origin": "VMFORK_VM_ACCEL"}
    assert {"qemu", "memory", "room"} <= {check["name"] for check in json.loads(members["doctor.json"])}
    # Its template is not there: that is told, and everything else is.
    assert list(told["missing"]) == ["machine/template.json"]
    assert json.loads(members["missing.json"]) == told["missing"]


def test_no_member_holds_a_secret(machine, places, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("VMFORK_VM_KERNEL_ARGS", f"key={SECRET} quiet")
    monkeypatch.setenv("TOKEN", SECRET)
    (places.home / "recipes").mkdir(parents=True)
    (places.home / "recipes" / "web.json").write_text(json.dumps({"warm_up": [SECRET], "secret_paths": [SECRET]}))
    _, members = make(machine.path.name, capsys)
    assert len(members) > 8
    for name, data in members.items():
        assert SECRET.encode() not in data, name
        assert b"token" not in data.lower() or name == "README.txt", name
    assert b"[hidden]" in members["machine/console.log"]
    assert b"[hidden]" in members["settings.json"]


@pytest.mark.parametrize("spoil", ["fifo", "folder", "link", "text"])
def test_a_damaged_folder_gives_what_is_left(machine, places, tmp_path, capsys, spoil) -> None:
    for name in ("vm.json", "ticket.json", "console.log"):
        path = machine.path / name
        path.unlink()
        if spoil == "fifo":
            os.mkfifo(path)
        elif spoil == "folder":
            path.mkdir()
        elif spoil == "link":
            path.symlink_to("/etc/passwd")
        else:
            path.write_text("nonsense")
    told, members = make(machine.path.name, capsys)
    assert {"machine/record.json", "machine/ticket.json"} <= set(told["missing"])
    assert "machine/files.json" in members
    assert "machine/qemu.log" in members
    assert b"root:" not in b"".join(members.values())


def test_a_machine_that_has_ended_gives_the_host_alone_and_a_dead_owners_is_not_swept(places, capsys) -> None:
    told, members = make("0123456789ab", capsys)
    assert told["missing"]["machine"] == "it has ended, and its folder is gone"
    assert {"versions.json", "settings.json", "doctor.json", "store.json"} <= set(members)
    left = VMFolder.create(places.vms, new_vm_id())
    (left.path / "qemu.log").write_text("killed\n")
    left.release()
    _, members = make(left.path.name, capsys)
    assert members["machine/qemu.log"] == b"killed\n"
    assert left.path.exists()


def test_a_wrong_configuration_is_told_and_the_rest_is_there(places, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("VMFORK_VM_CPUS", SECRET)
    told, members = make("0123456789ab", capsys)
    assert "the configuration is invalid" in told["missing"]["settings.json"]
    assert "versions.json" in members
    assert SECRET.encode() not in b"".join(members.values())


@pytest.mark.parametrize("vm_id", ["../../etc", "", "0123456789AB", "0123456789abc"])
def test_what_names_no_machine_is_refused(places, tmp_path, capsys, vm_id) -> None:
    assert main(["debug-bundle", vm_id]) == 1
    assert f"there is no VM {vm_id!r}" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tar.gz"))
