"""A handle that somebody forged: it names his folder, with his keeper in it, and a process of ours."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import contextmanager

import pytest

from vmfork.adopt.identity import Identity
from vmfork.errors import HostError, VMNotFound
from vmfork.host.process import ProcessIdentity
from vmfork.host.sockets import listen_unix
from vmfork.hypervisor.base import Hardware
from vmfork.machine.facts import MachineFacts
from vmfork.machine.folder import VMFolder, VMRecord, new_vm_id
from vmfork.machine.handle import VMHandle, new_token
from vmfork.machine.handover import take_over
from vmfork.machine.timings import Timings

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)


@pytest.fixture
def victim():
    """A process of ours that a forged handle names."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        yield identity
        assert process.poll() is None
        process.kill()


@contextmanager
def waiting(vms, victim, *, recorded):
    """The handle of a machine that seems to wait in `vms`; a keeper listens there that would let anybody have it."""
    facts = MachineFacts(identity=Identity.fresh(new_vm_id()), hardware=HARDWARE, image="default", ram_inode=0)
    folder = VMFolder.create(vms, facts.identity.vm_id)
    folder.record(VMRecord(facts=facts, process=recorded, owner_pid=0))
    with listen_unix(folder.path / "keeper.sock", kind=socket.SOCK_SEQPACKET) as keeper:
        keeper.setblocking(False)
        folder.release()
        yield VMHandle(
            facts=facts, folder=str(folder.path), process=victim, token=new_token(), paused=False,
            timings=Timings(spawn_s=0, answer_s=0, clock_s=0, thaw_s=0, total_s=0),
        )  # fmt: skip
        with pytest.raises(BlockingIOError):  # nobody asked it
            keeper.accept()
    assert folder.path.is_dir()


async def test_a_process_that_its_owner_did_not_record_is_not_taken(tmp_path, victim) -> None:
    recorded = ProcessIdentity(victim.pid, 0)
    with (
        waiting(tmp_path / "vms", victim, recorded=recorded) as handle,
        pytest.raises(VMNotFound, match="of no machine of this user"),
    ):
        await take_over(handle)


@pytest.mark.needs("root")
async def test_a_folder_of_another_user_is_not_entered(tmp_path, victim) -> None:
    with waiting(tmp_path / "vms", victim, recorded=victim) as handle:
        os.chown(handle.path, 1234, 1234)
        with pytest.raises(VMNotFound, match="of no machine of this user"):
            await take_over(handle)


@pytest.mark.needs("root")
@pytest.mark.parametrize("through_link", [False, True])
async def test_a_path_that_another_user_may_change_is_not_gone(tmp_path, victim, through_link) -> None:
    theirs = tmp_path / "theirs"
    with waiting(theirs / "vms", victim, recorded=victim) as handle:
        os.chown(theirs, 1234, 1234)
        if through_link:
            (tmp_path / "vms").symlink_to(theirs / "vms")
            object.__setattr__(handle, "folder", str(tmp_path / "vms" / handle.id))
        with pytest.raises(HostError, match="leads through") as caught:
            await take_over(handle)
        assert str(theirs) in str(caught.value)


async def test_nor_is_one_that_others_may_write_to(tmp_path, victim) -> None:
    with waiting(tmp_path / "open" / "vms", victim, recorded=victim) as handle:
        (tmp_path / "open").chmod(0o777)
        with pytest.raises(HostError, match="leads through"):
            await take_over(handle)
        (tmp_path / "open").chmod(0o700)
