"""What the host refuses to show is there all the same: no answer of ours says, or takes it, that it is missing."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
from contextlib import suppress

import pytest

from tests.refusals import NUMBERS, refusing
from vmfork.adopt.identity import Identity
from vmfork.config import Places, VMConfig
from vmfork.host.folders import find_content, is_ours, is_private_folder, read_link
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine.facts import MachineFacts
from vmfork.machine.folder import (
    VMFolder,
    VMRecord,
    find_record,
    list_records,
    new_vm_id,
    read_handle,
    sweep_vms,
)
from vmfork.machine.handle import VMHandle, new_token
from vmfork.machine.handover import _find_folder, find_handle
from vmfork.machine.timings import Timings
from vmfork.store import TemplateStore
from vmfork.template.kept import KeptRecipe, find_recipe, keeping_recipe

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)


@pytest.fixture
def process():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.fixture
def handle(tmp_path, process) -> VMHandle:
    """Of a machine without an owner, whose folder is all there."""
    facts = MachineFacts(identity=Identity.fresh(new_vm_id()), hardware=HARDWARE, image="default", ram_inode=0)
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    folder = VMFolder.create(tmp_path / "vms", facts.identity.vm_id)
    folder.record(VMRecord(facts=facts, process=identity, owner_pid=0))
    handle = VMHandle(
        facts=facts, folder=str(folder.path), process=identity, token=new_token(), paused=False,
        timings=Timings(spawn_s=0, answer_s=0, clock_s=0, thaw_s=0, total_s=0),
    )  # fmt: skip
    folder.write_handle(handle.to_json())
    folder.release()
    return handle


@pytest.fixture
def places(tmp_path) -> Places:
    places = Places(home=tmp_path / "home", runtime=tmp_path)
    with keeping_recipe("one", KeptRecipe(config=VMConfig()), places=places):
        pass
    template = places.templates / "one"
    template.mkdir(mode=0o700, parents=True)
    (template / "lock").touch()
    (template / "current").symlink_to("0123456789abcdef")
    return places


ASKED = {
    "find_content": lambda handle, _: find_content(handle.path / "vm.json"),
    "read_link": lambda _, places: read_link(places.templates / "one" / "current"),
    "is_ours": lambda handle, _: is_ours(handle.path, marker="lock"),
    "is_private_folder": lambda handle, _: is_private_folder(handle.path),
    "ProcessIdentity.of": lambda handle, _: ProcessIdentity.of(handle.pid),
    "is_alive": lambda handle, _: handle.process.is_alive(),
    "find_record": lambda handle, _: find_record(handle.path),
    "read_handle": lambda handle, _: read_handle(handle.path),
    "list_records": lambda handle, _: list_records(handle.path.parent),
    "find_handle": lambda handle, _: find_handle(handle.path.parent, handle.id),
    "_find_folder": lambda handle, _: _find_folder(handle),
    "find_generation": lambda _, places: TemplateStore(places.templates).find_generation("one"),
    "find_last_use": lambda _, places: TemplateStore(places.templates).find_last_use("one"),
    "find_recipe": lambda _, places: find_recipe("one", places=places),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_refusal_is_no_answer(handle, places, ask) -> None:
    with refusing() as counted:
        answer = ask(handle, places)
    assert answer
    assert counted.seen
    for at, number in itertools.product(range(counted.seen), NUMBERS):
        said = answer
        with refusing(at, number) as refusal, suppress(OSError):
            said = ask(handle, places)
        # With hidepid=1 the host says so of another user's process, which is none of ours.
        assert said == answer or (number == errno.EACCES and refusal.path.startswith("/proc/")), refusal


@pytest.mark.parametrize("refused", ["os.pidfd_open", "vmfork.machine.folder.find_content"])
def test_a_machine_that_cannot_be_ended_now_keeps_its_folder(handle, process, monkeypatch, refused) -> None:
    """Its folder is all by which the next sweep finds it."""

    def refuse(*_args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    vms = handle.path.parent
    with monkeypatch.context() as patched:
        patched.setattr(refused, refuse)
        assert sweep_vms(vms) == []
    assert handle.path.is_dir()
    assert process.poll() is None
    assert sweep_vms(vms) == [handle.id]
    assert process.wait(10) != 0
    assert os.listdir(vms) == []
