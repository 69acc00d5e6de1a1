"""What is told of machines that have ended, and for how long it is kept."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from vmfork.adopt.identity import Identity
from vmfork.cli.main import main
from vmfork.config import find_places
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine import ended
from vmfork.machine.facts import Descent, MachineFacts
from vmfork.machine.folder import VMFolder, VMRecord, forget_ended, list_ended, new_vm_id, sweep_vms

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)
HOUR_S = 3600


@pytest.fixture
def vms(tmp_path, monkeypatch):
    monkeypatch.setenv("VMFORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VMFORK_RUNTIME_DIR", str(tmp_path / "run"))
    return find_places().vms


def leave(vms, *, ago_s: float = 0, size: int = 0, told: bool = True, template: str = "t", labels=None, line=()) -> str:
    """What is left of a machine that a broker had, and that ended so long ago; its id."""
    vm_id = new_vm_id()
    facts = MachineFacts(identity=Identity.fresh(vm_id, template=template), hardware=HARDWARE, image="i")
    facts = replace(facts, labels=labels or {}, descent=Descent(vms=tuple(line)))
    folder = VMFolder.create(vms, vm_id)
    folder.record(VMRecord(facts=facts, process=ProcessIdentity(2**22 + 1, 1), owner_pid=1))
    folder.write_brokered(b"{}")
    (folder.path / "programs").mkdir()
    (folder.path / "programs" / "1.out").write_bytes(b"x" * size)
    if told:
        note = {"reason": "it was stopped", "at": time.time() - ago_s}
        (folder.path / "ended.json").write_text(json.dumps(note))
    folder.release()
    return vm_id


def test_a_machine_is_told_of_for_a_day_and_then_forgotten(vms, capsys) -> None:
    young, old = leave(vms, ago_s=23 * HOUR_S), leave(vms, ago_s=23.5 * HOUR_S)
    sweep_vms(vms)
    assert [record.id for record, _ in list_ended(vms)] == [old, young]
    (vms.with_name("ended") / old / "ended.json").write_text(json.dumps({"reason": "x", "at": time.time() - 86_401}))
    assert [record.id for record, _ in list_ended(vms)] == [young]
    assert main(["ps", "-a", "--json"]) == 0
    assert [told["id"] for told in json.loads(capsys.readouterr().out)] == [young]
    assert [path.name for path in vms.with_name("ended").iterdir()] == [young]


def test_the_last_64_are_kept(vms) -> None:
    left = [leave(vms, ago_s=1000 - number) for number in range(67)]
    sweep_vms(vms)
    assert [record.id for record, _ in list_ended(vms)] == left[-64:]
    assert {path.name for path in vms.with_name("ended").iterdir()} == set(left[-64:])


def test_what_takes_too_much_room_goes_before_its_time_but_for_the_last(vms, monkeypatch) -> None:
    monkeypatch.setattr(ended, "KEPT_BYTES", 100_000)
    left = [leave(vms, ago_s=10 - number, size=40_000) for number in range(4)]
    sweep_vms(vms)
    assert [record.id for record, _ in list_ended(vms)] == left[-2:]
    last = leave(vms, size=200_000)
    sweep_vms(vms)
    assert [record.id for record, _ in list_ended(vms)] == [last]


def test_of_one_whose_broker_was_killed_the_end_is_told_all_the_same(vms) -> None:
    leave(vms, told=False)
    sweep_vms(vms)
    ((_, end),) = list_ended(vms)
    assert end.reason == "its broker was killed"
    assert time.time() - end.at < HOUR_S


def test_one_that_is_forgotten_meanwhile_is_no_error(vms, monkeypatch) -> None:
    gone = vms.with_name("ended") / new_vm_id()
    monkeypatch.setattr(ended, "list_ours", lambda *_args, **_options: [gone])
    assert list_ended(vms) == []
    forget_ended(vms)
