"""Which machine is meant by a name, an id, or the beginning of one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmfork.adopt.identity import Identity
from vmfork.errors import ConfigError, VMExists, VMNotFound
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine import naming
from vmfork.machine.facts import MachineFacts
from vmfork.machine.folder import VMRecord
from vmfork.machine.naming import check_vm_name, choose, has_label

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)


def record(vm_id: str, name: str = "") -> VMRecord:
    facts = MachineFacts(identity=Identity.fresh(vm_id, template="t"), hardware=HARDWARE, image="i")
    return VMRecord(facts=replace(facts, name=name), process=ProcessIdentity(1, 1), owner_pid=1)


WEB, OTHER, NAMED = record("abc111111111", "web"), record("abc222222222"), record("def333333333", "abc1")
ALL = [WEB, OTHER, NAMED]


@pytest.mark.parametrize(
    ("text", "meant"),
    [("web", WEB), ("abc111111111", WEB), ("abc2", OTHER), ("abc222222222", OTHER), ("d", NAMED), ("abc1", NAMED)],
)
def test_a_name_comes_before_the_beginning_of_an_id(text, meant) -> None:
    assert choose(ALL, text) is meant


def test_a_beginning_that_fits_two_names_both() -> None:
    with pytest.raises(ConfigError, match="the beginning of several ids: abc111111111, abc222222222") as error:
        choose(ALL, "abc")
    assert "more of it" in error.value.hint


def test_of_several_of_one_name_the_first_is_meant() -> None:
    """Names are one's among the living; of those that have ended the last may be looked at first."""
    assert choose([record("111111111111", "web"), *ALL], "web").id == "111111111111"
    assert choose([record("111111111111", "web"), *ALL], WEB.id) is WEB


@pytest.mark.parametrize("text", ["", "we", "abc3", "../abc1", "ABC111111111", "abc1111111111", "a\0b", "x" * 5000])
def test_what_is_none_of_them_is_not_found(text) -> None:
    with pytest.raises(VMNotFound, match="no living VM"):
        choose(ALL, text)


@pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 65, "a\0b", "0123456789ab", "é", ".hidden/x"])
def test_what_cannot_be_a_name_is_refused(tmp_path, name) -> None:
    with pytest.raises(ConfigError):
        check_vm_name(name, tmp_path)


def test_a_name_that_is_taken_is_refused_and_says_whose_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(naming, "list_records", lambda _vms: ALL)
    check_vm_name("free", tmp_path)
    with pytest.raises(VMExists, match="abc111111111") as error:
        check_vm_name("web", tmp_path)
    assert "vmfork stop web" in error.value.hint


@pytest.mark.parametrize(
    ("wanted", "has"), [("", True), ("a", True), ("a=1", True), ("a=2", False), ("b", False), ("=1", False)]
)
def test_a_label_is_found_by_its_key_or_with_its_value(wanted, has) -> None:
    assert has_label({"a": "1"}, wanted) is has


def test_one_that_comes_back_may_have_the_name_that_is_its_own(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(naming, "list_records", lambda _vms: ALL)
    check_vm_name("web", tmp_path, vm_id=WEB.id)
    for vm_id in ("", OTHER.id):
        with pytest.raises(VMExists):
            check_vm_name("web", tmp_path, vm_id=vm_id)
