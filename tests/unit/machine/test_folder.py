"""Folders of VMs: a sweep removes those whose owner died, and nothing that is not ours."""

from __future__ import annotations

import os
import time

import pytest

from vmfork.host.lock import FileLock
from vmfork.machine.folder import VMFolder, find_strangers, find_waste, new_vm_id, sweep_vms


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


def make_old(path) -> None:
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))


def plant_strangers(vms) -> set:
    """Things of others beside ours, some of which look much like ours."""
    vms.mkdir(mode=0o700, exist_ok=True)
    theirs = {vms / name for name in ("my-disks", "0123456789ab", ".new-disks", "0123456789abc", "notes.txt")}
    for path in theirs - {vms / "notes.txt"}:
        path.mkdir(mode=0o700)
        (path / "data").write_text("precious")
        make_old(path)
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


def test_what_is_new_is_swept_once_nobody_can_be_at_work_on_it(vms):
    vms.mkdir(mode=0o700)
    (vms / ".new-0123456789ab").mkdir(mode=0o700)
    sweep_vms(vms)
    assert [path.name for path in vms.iterdir()] == [".new-0123456789ab"]
    make_old(vms / ".new-0123456789ab")
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
