"""Which of the living machines is meant: by its id, the beginning of one, or its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.config import check_name
from vmfork.errors import ConfigError, StoreBusy, VMExists, VMNotFound
from vmfork.host.lock import FileLock
from vmfork.machine.folder import is_vm_id, list_ended, list_ending, list_records, sweep_vms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vmfork.machine.folder import VMRecord
    from vmfork.machine.running import Running

_LOCK_LIMIT_S = 30.0
# What is missing where the machines that ended not long ago were looked at as well.
NEITHER = "no living VM has that name or id, and none that ended not long ago had it"


def check_vm_name(name: str, vms: Path, *, vm_id: str = "") -> None:
    """`name` can be given to a machine now. Raises `ConfigError`, or `VMExists` when a living one has it.

    That of the id may have it: it was rolled back.
    """
    check_name(name)
    if is_vm_id(name):
        raise ConfigError("name", name, f"{name!r} could be an id", hint="take one that is not twelve of 0-9 and a-f")
    for record in list_records(vms):
        if record.name == name and record.id != vm_id:
            raise VMExists(name, record.id)


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether the label `wanted`, `KEY=VALUE` or `KEY`, is one of `labels`. Everything has the empty one."""
    return label_test(wanted)(labels)


def label_test(wanted: str) -> Callable[[Mapping[str, str]], bool]:
    """`has_label` of many: what is wanted is read once."""
    key, equals, value = wanted.partition("=")
    if not wanted:
        return lambda _: True
    return (lambda labels: labels.get(key) == value) if equals else (lambda labels: key in labels)


async def give_name(running: Running, name: str, labels: Mapping[str, str], *, vms: Path) -> None:
    """The machine has the name, if one is given, and the labels. Of several that want one name, one gets it.

    Raises `VMExists` for the others. The records say who has a name: a lock is held while they are looked at.
    """
    if not name:
        running.name_it(name, labels)
        return
    lock = await FileLock.acquire(vms.with_name("vms.lock"), wait_s=_LOCK_LIMIT_S)
    if lock is None:
        raise StoreBusy("the list of names", "another process that starts a machine")
    with lock:
        check_vm_name(name, vms, vm_id=running.id)
        running.name_it(name, labels)


def find_vm(vms: Path, text: str) -> VMRecord:
    """The record of the living machine that `text` names: its name, its id, or the beginning of one id alone.

    Raises `VMNotFound`, and `ConfigError` when several ids begin so.
    """
    return choose(list_records(vms), text)


def find_ending(vms: Path, text: str) -> VMRecord:
    """The record of the machine of that name or id that ends now. Raises what `find_vm` raises."""
    return choose(list_ending(vms), text)


def find_ended(vms: Path, text: str) -> VMRecord:
    """The record of the machine of that name or id that had clients and ended last. Raises what `find_vm` raises."""
    sweep_vms(vms)
    ended = [record for record, _ in list_ended(vms)][::-1]
    return choose(ended, text, missing="no VM that ended not long ago has that name or id")


def choose(records: Sequence[VMRecord], text: str, *, missing: str = "no living VM has that name or id") -> VMRecord:
    """The one of `records` that `text` names; of several of one name, as machines that ended can have, the first.

    Raises `VMNotFound`, which says what is `missing`, and `ConfigError` when several ids begin so.
    """
    named = [record for record in records if text and text in (record.name, record.id)]
    found = named[:1] or [record for record in records if text and record.id.startswith(text)]
    if not found:
        raise VMNotFound(text, missing)
    if len(found) > 1:
        ids = ", ".join(record.id for record in found)
        raise ConfigError("vm", text, f"{text!r} is the beginning of several ids: {ids}", hint="give more of it")
    return found[0]
