"""Folders of VMs: a sweep removes those whose owner died, and nothing that is not ours."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.rules.capabilities import need
from vmfork.adopt.identity import Identity
from vmfork.host import group
from vmfork.host.delegation import find_delegation
from vmfork.host.lock import FileLock
from vmfork.host.process import identify
from vmfork.hypervisor.base import Hardware
from vmfork.machine.allotment import allot
from vmfork.machine.facts import MachineFacts
from vmfork.machine.folder import Groups, VMFolder, VMRecord, find_strangers, find_waste, is_stuck, new_vm_id, sweep_vms
from vmfork.records import write_record

LIMIT_S = 20
HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=64)


def make_record(process) -> VMRecord:
    facts = MachineFacts(identity=Identity.fresh("0123456789ab"), hardware=HARDWARE, image="default")
    return VMRecord(facts=facts, process=process, owner_pid=1)


@pytest.fixture
def vms(tmp_path):
    return tmp_path / "vms"


def leave(vms) -> str:
    """The folder of a VM whose owner died; its id."""
    vm_id = new_vm_id()
    folder = VMFolder.create(vms, vm_id)
    (folder.path / "qemu.log").write_text("it ended\n")
    folder.release()
    return vm_id


def plant_strangers(vms) -> set:
    """Things of others beside ours, some of which look much like ours."""
    vms.mkdir(mode=0o700, exist_ok=True)
    theirs = {vms / name for name in ("my-disks", "0123456789ab", ".new-disks", "0123456789abc", "notes.txt")}
    for path in theirs - {vms / "notes.txt"}:
        path.mkdir(mode=0o700)
        (path / "data").write_text("precious")
    (vms / "notes.txt").write_text("precious")
    (vms / "my-disks" / "lock").touch()
    outside = vms.parent / "outside"
    outside.mkdir()
    (outside / "lock").touch()
    link = vms / "abcdefabcdef"
    link.symlink_to(outside)
    return theirs | {link}


def test_a_sweep_removes_what_dead_owners_left_and_no_stranger(vms):
    theirs = plant_strangers(vms)
    dead = [leave(vms), leave(vms)]
    live = VMFolder.create(vms, new_vm_id())
    assert {path.name for path in find_waste(vms)} == set(dead)
    assert sorted(sweep_vms(vms)) == sorted(dead)
    assert set(vms.iterdir()) == theirs | {live.path}
    assert (vms / "0123456789ab" / "data").read_text() == "precious"
    assert (vms.parent / "outside" / "lock").exists()
    assert set(find_strangers(vms)) == theirs
    live.close()
    assert not live.path.exists()


def test_a_folder_that_is_being_made_stays_when_the_hosts_clock_jumps(vms, monkeypatch):
    made = VMFolder.create(vms, new_vm_id())
    new = made.path.rename(vms / f".new-{made.path.name}")  # as it was a moment before
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)
    sweep_vms(vms)
    assert new.exists()
    made.release()
    sweep_vms(vms)
    assert not new.exists()


@pytest.fixture
def parents():
    found = find_delegation().parents
    need("control-groups", found=len(found) > 0)
    return found


def test_its_control_groups_go_with_a_folder_that_is_closed(vms, parents):
    folder = VMFolder.create(vms, new_vm_id())
    groups = folder.make_groups(parents, allot(HARDWARE, cpu_weight=100))
    assert all(map(os.path.isdir, groups))
    folder.close()
    assert not any(map(os.path.exists, groups))


def test_groups_that_owner_and_keeper_left_go_when_a_sweep_has_ended_the_machine(vms, parents):
    """Both were killed, and the emulator runs on in its groups."""
    folder = VMFolder.create(vms, new_vm_id())
    groups = folder.make_groups(parents, allot(HARDWARE, cpu_weight=100))
    with subprocess.Popen(["sleep", "1000"]) as emulator:
        for group in groups:
            Path(group, "cgroup.procs").write_text(str(emulator.pid))
        folder.record(make_record(identify(emulator)))
        folder.release()
        assert sweep_vms(vms) == [folder.path.name]
    assert not any(map(os.path.exists, groups))
    assert list(vms.iterdir()) == []


def test_a_group_in_use_keeps_its_folder_for_the_next_sweep(vms, parents):
    """Two seconds for it in each command would be too many: the first sweep waits, and no other does."""
    folder = VMFolder.create(vms, new_vm_id())
    groups = folder.make_groups(parents, allot(HARDWARE, cpu_weight=100))
    folder.release()
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        Path(groups[0], "cgroup.procs").write_text(str(stranger.pid))
        assert sweep_vms(vms) == []
        assert is_stuck(folder.path)
        begun = time.monotonic()
        assert [sweep_vms(vms) for _ in range(100)] == [[]] * 100
        assert time.monotonic() - begun < 100 * group._EMPTY_LIMIT_S / 2
        stranger.kill()
    end = time.monotonic() + LIMIT_S
    while sweep_vms(vms) == []:  # the kernel takes its last thread from the group a moment after its end was told
        assert time.monotonic() < end
    assert not any(map(os.path.exists, (*groups, folder.path)))


def test_a_group_in_use_keeps_the_folder_of_a_machine_that_is_closed(vms, parents, monkeypatch):
    monkeypatch.setattr(group, "_EMPTY_LIMIT_S", 0.0)
    folder = VMFolder.create(vms, new_vm_id())
    groups = folder.make_groups(parents, allot(HARDWARE, cpu_weight=100))
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        Path(groups[0], "cgroup.procs").write_text(str(stranger.pid))
        folder.close()
        assert is_stuck(folder.path)
        assert find_waste(vms) == [folder.path]
        stranger.kill()
    end = time.monotonic() + LIMIT_S
    while sweep_vms(vms) == []:
        assert time.monotonic() < end
    assert not any(map(os.path.exists, (*groups, folder.path)))


def test_a_path_that_is_no_group_of_the_machine_is_not_touched(vms, tmp_path):
    """A damaged record, or a forged one."""
    vm_id = leave(vms)
    (tmp_path / "precious").mkdir()
    (vms / vm_id / "groups.json").write_bytes(write_record(Groups((str(tmp_path / "precious"), "relative"))))
    assert sweep_vms(vms) == [vm_id]
    assert (tmp_path / "precious").exists()


@pytest.mark.needs("root")
def test_a_folder_of_another_user_is_a_strangers(vms):
    vm_id = leave(vms)
    os.chown(vms / vm_id, 1234, 1234)
    assert sweep_vms(vms) == []
    assert find_strangers(vms) == [vms / vm_id]


def test_what_is_on_its_way_out_is_swept_at_once(vms):
    """Its remover was killed, or the host refused to remove it; should he be at work yet, both have the same aim."""
    vms.mkdir(mode=0o700)
    doomed = vms / ".old-0123456789ab"
    doomed.mkdir(mode=0o700)
    (doomed / "vm.json").touch()
    assert find_waste(vms) == [doomed]
    assert find_strangers(vms) == []
    sweep_vms(vms)
    assert list(vms.iterdir()) == []


def test_what_a_killed_maker_left_is_swept_at_once(vms):
    """Killed before it had made the lock, and after."""
    vms.mkdir(mode=0o700)
    (vms / ".new-0123456789ab").mkdir(mode=0o700)
    (vms / ".new-abcdefabcdef").mkdir(mode=0o700)
    (vms / ".new-abcdefabcdef" / "lock").touch()
    (vms / ".new-abcdefabcdef" / "ticket.json").touch()
    sweep_vms(vms)
    assert list(vms.iterdir()) == []


def test_folders_are_made_while_others_sweep(vms):
    """A sweep removes what has no lock yet, as it removes what a killed process left: its maker makes another."""
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            sweep_vms(vms)
            find_waste(vms)

    with ThreadPoolExecutor() as pool:
        sweeps = [pool.submit(sweep) for _ in range(2)]
        try:
            for _ in range(200):
                with closing(VMFolder.create(vms, new_vm_id())) as made:
                    assert (made.path / "lock").exists()
        finally:
            done.set()
        for each in sweeps:
            each.result()
    sweep_vms(vms)
    assert list(vms.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("file", ["vm.json", "handle.json"])
def test_a_record_that_is_no_file_keeps_no_sweep(vms, make, file):
    vm_id = leave(vms)
    make(vms / vm_id / file)
    assert sweep_vms(vms) == [vm_id]
    assert list(vms.iterdir()) == []


def test_a_lock_that_is_no_file_makes_a_stranger_of_its_folder(vms):
    vm_id = leave(vms)
    (vms / vm_id / "lock").unlink()
    os.mkfifo(vms / vm_id / "lock")
    assert sweep_vms(vms) == []
    assert find_strangers(vms) == [vms / vm_id]


def test_a_folder_that_is_held_is_not_waste(vms):
    vm_id = leave(vms)
    with FileLock.try_acquire(vms / vm_id / "lock"):
        assert find_waste(vms) == []
        assert sweep_vms(vms) == []
