"""The folder of a machine that comes back is its former one, and nobody else's meanwhile."""

from __future__ import annotations

import subprocess

import pytest

from tests.unit.machine.test_ended import leave, vms  # noqa: F401 - a fixture
from vmfork.errors import StoreBusy, VMNotFound
from vmfork.host.lock import is_locked
from vmfork.host.process import ProcessIdentity, identify
from vmfork.machine.ended import read_reason
from vmfork.machine.folder import (
    LOCK,
    VMFolder,
    claim_folder,
    find_record,
    list_ended,
    new_vm_id,
    note_replaced,
    sweep_vms,
    was_replaced,
)


@pytest.mark.parametrize("swept", [False, True])
async def test_it_is_claimed_under_its_name_wherever_it_lies(vms, swept) -> None:  # noqa: F811
    vm_id = leave(vms)
    if swept:
        assert sweep_vms(vms) == [vm_id]
        assert not (vms / vm_id).exists()
    folder = await claim_folder(vms, vm_id, wait_s=0)
    assert folder.path == vms / vm_id
    assert is_locked(folder.path / LOCK)
    assert (sweep_vms(vms), list_ended(vms)) == ([], [])
    folder.give_up("it was not to be")
    ((record, end),) = list_ended(vms)
    assert (record.id, end.reason) == (vm_id, "it was not to be")


async def test_one_that_lives_or_that_nobody_knows_is_not(vms) -> None:  # noqa: F811
    with pytest.raises(VMNotFound):
        await claim_folder(vms, new_vm_id(), wait_s=0)
    folder = VMFolder.create(vms, new_vm_id())
    with pytest.raises(StoreBusy, match=folder.path.name):
        await claim_folder(vms, folder.path.name, wait_s=0.05)
    folder.close()


async def test_what_is_lent_stays_the_lenders_until_it_is_kept(vms) -> None:  # noqa: F811
    folder = VMFolder.create(vms, new_vm_id())
    lent = folder.lend()
    lent.close()
    assert is_locked(folder.path / LOCK)
    lent = folder.lend()
    lent.keep()
    lent.close()
    assert not folder.path.exists()
    folder.close()


def test_a_cleared_folder_has_no_socket_and_no_pause_of_the_machine_before(vms) -> None:  # noqa: F811
    folder = VMFolder.create(vms, new_vm_id())
    folder.note_paused(paused=True)
    (folder.path / "agent.sock").touch()
    (folder.path / "qemu.log").write_text("kept")
    folder.clear()
    assert sorted(path.name for path in folder.path.iterdir()) == [LOCK, "qemu.log"]
    folder.close()


def test_whoever_used_it_before_is_told_that_it_was_replaced(vms) -> None:  # noqa: F811
    vm_id = leave(vms)
    folder = vms / vm_id
    record = find_record(folder)
    assert not was_replaced(folder, record.process)
    note_replaced(folder, record.process)
    assert was_replaced(folder, record.process)
    # One of an earlier time knows by the record, which is of another process.
    with subprocess.Popen(["sleep", "1000"]) as other:
        assert was_replaced(folder, identify(other))
        other.kill()
    assert not was_replaced(vms / new_vm_id(), ProcessIdentity(1, 1))
    assert read_reason(folder) == "it was stopped"
