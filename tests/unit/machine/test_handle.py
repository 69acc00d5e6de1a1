"""A handle survives the way to another process whole, or is refused."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace

import pytest
from hypothesis import given

from tests.json_values import damaged
from vmfork.adopt.handshake import Adoption
from vmfork.adopt.identity import Identity
from vmfork.adopt.todo import Thaw
from vmfork.errors import ConfigError, VMNotFound
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine.facts import MachineFacts
from vmfork.machine.handle import HANDLE_VERSION, VMHandle, new_token
from vmfork.machine.handover import find_handle
from vmfork.machine.request import check_ttl
from vmfork.machine.timings import Timings

IDENTITY = Identity.fresh("0123456789ab", template="py")
HARDWARE = Hardware(
    machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=384, max_cpus=4, max_memory_mib=512,
    added_mib=(128,),
)  # fmt: skip


@pytest.fixture
def handle() -> VMHandle:
    return make_handle()


def make_handle() -> VMHandle:
    return VMHandle(
        facts=MachineFacts(identity=IDENTITY, hardware=HARDWARE, image="default", ram_inode=5),
        folder="/run/vms/0123456789ab",
        process=ProcessIdentity(12, 34),
        token=new_token(),
        paused=False,
        timings=Timings(spawn_s=0.1, answer_s=0.2, clock_s=0.3, thaw_s=0.4, total_s=1.0),
        adoption=Adoption(0.001, 2, 0.003),
        todo=Thaw(hooks=("/etc/hook",), watchers=("a", "b")),
    )


def test_it_comes_back_as_it_was(handle) -> None:
    assert VMHandle.from_json(handle.to_json()) == handle
    base = replace(handle, adoption=None)
    assert VMHandle.from_json(base.to_json()) == base


def test_who_it_is_comes_back_and_no_entropy_was_ever_in_it(handle) -> None:
    data = handle.to_json()
    again = VMHandle.from_json(data)
    assert (again.id, again.hostname, again.generation) == (handle.id, IDENTITY.hostname, IDENTITY.generation.hex)
    entropy = dict(IDENTITY.items({}))["entropy"]
    assert len(entropy) == 64
    assert entropy != dict(again.facts.identity.items({}))["entropy"]
    assert b"entropy" not in data


def test_what_is_left_of_its_time_to_live_is_told(handle) -> None:
    assert handle.left_s() == 0
    assert 59 < replace(handle, deadline_s=time.monotonic() + 60).left_s() <= 60
    assert replace(handle, deadline_s=time.monotonic() - 60).left_s() == 1  # 0 would be for ever


def test_the_token_is_not_shown(handle) -> None:
    assert handle.token not in repr(handle)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"7", b"null", b"\xff", b'{"version": 1}'])
def test_what_is_none_is_refused(data) -> None:
    with pytest.raises(ConfigError):
        VMHandle.from_json(data)


@given(data=damaged(make_handle().to_json()))
def test_a_damaged_handle_is_a_handle_or_refused_and_nothing_else(data) -> None:
    try:
        read = VMHandle.from_json(data)
        told = VMHandle.from_json(read.to_json()).id == read.id
    except ConfigError as error:
        told = error.field.startswith("handle")
    assert told


def test_another_version_is_named(handle) -> None:
    data = json.dumps({**json.loads(handle.to_json()), "version": HANDLE_VERSION + 1}).encode()
    with pytest.raises(ConfigError, match=f"version {HANDLE_VERSION + 1}") as refused:
        VMHandle.from_json(data)
    assert "same vmfork" in refused.value.hint


# A base has no adoption, there may be nothing to do, and no time at which it ends.
NEEDED = [field.name for field in fields(VMHandle) if field.name not in ("adoption", "todo", "deadline_s")]


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_field_is_refused(handle, name) -> None:
    data = json.loads(handle.to_json())
    del data[name]
    with pytest.raises(ConfigError):
        VMHandle.from_json(json.dumps(data).encode())


@pytest.mark.parametrize("vm_id", ["../../etc", "", 7])
def test_an_id_that_is_none_is_refused(handle, vm_id) -> None:
    data = json.loads(handle.to_json())
    data["facts"]["identity"]["vm_id"] = vm_id
    with pytest.raises(ConfigError, match="damaged"):
        VMHandle.from_json(json.dumps(data).encode())


@pytest.mark.parametrize("token", ["00", "x", None])
def test_a_token_that_is_none_is_refused(handle, token) -> None:
    data = json.dumps({**json.loads(handle.to_json()), "token": token}).encode()
    with pytest.raises(ConfigError, match="damaged"):
        VMHandle.from_json(data)


@pytest.mark.parametrize("ttl_s", [-1, float("nan"), float("inf"), True, "5", None])
def test_a_time_to_live_must_be_one(ttl_s) -> None:
    with pytest.raises(ConfigError, match="ttl_s"):
        check_ttl(ttl_s)


@pytest.mark.parametrize("vm_id", ["", "..", "0123456789ab", "0123456789ab/../x", "x" * 200])
def test_an_id_under_which_nothing_is_finds_nothing(tmp_path, vm_id) -> None:
    with pytest.raises(VMNotFound):
        find_handle(tmp_path, vm_id)
