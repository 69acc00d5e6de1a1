"""A machine is let in where the host has room for it; its ticket, in its folder, says what it was promised.

Whoever lets one in holds the lock of VMS from the look at the host to the new ticket. So of two processes that ask at
once, the second sees what the first was promised, although nothing of it is in use yet.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.admission.charge import Charge, Ticket
from vmfork.admission.readings import take_readings
from vmfork.admission.rule import count_fitting, count_promised, find_shortage, show_arithmetic
from vmfork.config import Limits, layers_beside
from vmfork.errors import NoRoom
from vmfork.hint import Hint
from vmfork.host.changes import DepartureWatch
from vmfork.host.folders import make_private
from vmfork.host.lock import locked_folder
from vmfork.host.memory import read_private, read_resident
from vmfork.hypervisor.base import ForkedRAM, SharedRAM
from vmfork.hypervisor.qemu import most_memory_mib
from vmfork.journal import about
from vmfork.machine.folder import VMFolder, find_record, find_ticket, find_version, list_charged, sweep_vms
from vmfork.store.layers import LayerStore
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfork.admission.rule import Promised, Readings, Shortage
    from vmfork.hypervisor.base import RAM, Hardware

_log = logging.getLogger("vmfork")

# Whoever holds the lock reads a few files.
_LOCK_WAIT_S = 10.0
# The end of one of our machines wakes whoever waits. Nothing tells when another program gives memory back.
_LOOK_EVERY_S = 1.0

_HINTS = {
    "memory": Hint(
        "close machines, give them less memory, or wait for room (wait_s); what may be given: VMConfig's overcommit and"
        " reserve_mib",
        "end machines, give them less memory, or wait for room (--wait); what may be given: overcommit and reserve_mib"
        " in [vm]",
    ),
    "memory pressure": Hint(
        "end what uses the memory, or wait (wait_s); VMConfig's max_pressure says how much is too much",
        "end what uses the memory, or wait (--wait); max_pressure in [vm] says how much is too much",
    ),
    "file descriptors": "raise the limit (ulimit -n), or close machines",
    "processes and threads": "raise the limit (ulimit -u, pids.max of the control group), or close machines",
}


def charge_for(hardware: Hardware, ram: RAM, limits: Limits) -> Charge:
    """What a machine of `hardware` is counted with, by where its RAM is."""
    if isinstance(ram, ForkedRAM):
        return charge_for_fork(hardware, limits)
    return Charge.of_boot(
        memory_mib=hardware.memory_mib,
        emulator_mib=most_memory_mib(hardware),
        cpus=hardware.max_cpus,
        overcommit=limits.overcommit or 1,
        has_ram_file=isinstance(ram, SharedRAM),
    )


def charge_for_fork(hardware: Hardware, limits: Limits) -> Charge:
    """What a fork of a template of `hardware` is counted with."""
    return Charge.of_fork(
        memory_mib=hardware.memory_mib,
        emulator_mib=most_memory_mib(hardware),
        cpus=hardware.max_cpus,
        overcommit=limits.overcommit or 1,
    )


async def make_folder(vms: Path, vm_id: str, charge: Charge, limits: Limits) -> VMFolder:
    """The folder of a machine that the host has room for.

    Where there is none, layers of recipes go for it, the one used least recently first, and then machines that end are
    waited for, `limits.wait_s` seconds at most. Raises `NoRoom` then, with the arithmetic. With an overcommit of 0
    nothing is looked at.
    """
    ticket = Ticket(charge=charge, limits=limits)
    if not limits.overcommit:
        return VMFolder.create(vms, vm_id, ticket)
    try:
        made = await _try_make(vms, vm_id, ticket)
    except FileNotFoundError:  # the first machine of all
        make_private(vms)
        made = await _try_make(vms, vm_id, ticket)
    return made if isinstance(made, VMFolder) else await _wait_and_make(vms, vm_id, ticket)


async def add_to_ticket(folder: VMFolder, added_mib: int) -> None:
    """The machine is promised `added_mib` MiB more, or less where that is negative. Raises `NoRoom`, as `make_folder`.

    A machine that was started by an older vmfork has no ticket, and gets none: the default limits hold for it.
    """
    while (shortage := await _try_add(folder, added_mib)) is not None:
        if not await _have_given_way(folder.path.parent, shortage.resource):
            raise _no_room(shortage)


async def _try_add(folder: VMFolder, added_mib: int) -> Shortage | None:
    ticket, vms = find_ticket(folder.path), folder.path.parent
    limits = Limits() if ticket is None else ticket.limits
    async with locked_folder(vms, wait_s=_LOCK_WAIT_S):
        if added_mib > 0 and limits.overcommit:
            shortage = _find_shortage(vms, Charge.of_growth(added_mib), limits)
            if shortage is not None:
                return shortage
        if ticket is not None:
            folder.write_ticket(replace(ticket, charge=ticket.charge.grown(added_mib)))
    return None


async def check_room(vms: Path, hardware: Hardware, limits: Limits, count: int) -> None:
    """Raises `NoRoom`, with the arithmetic, when the host has none for `count` forks of `hardware` now."""
    if not limits.overcommit:
        return
    charge = charge_for_fork(hardware, limits)
    fitting, promised, readings = count_room(vms, charge, limits)
    while fitting < count and await _have_given_way(vms, "memory"):
        fitting, promised, readings = count_room(vms, charge, limits)
    if fitting < count:
        lines = "\n".join(show_arithmetic(promised, readings=readings, limits=limits))
        reason = f"{count} forks of {hardware.memory_mib} MiB were asked for, {fitting} have room"
        raise NoRoom("memory", reason, log=lines, hint=_HINTS["memory"])


@contextmanager
def ticket_kept(folder: VMFolder) -> Iterator[None]:
    """After an error in the block the machine is promised what it was before."""
    before = find_ticket(folder.path)
    try:
        yield
    except BaseException:
        if before is not None and find_ticket(folder.path) != before:
            folder.write_ticket(before)
        raise


def count_room(vms: Path, charge: Charge, limits: Limits) -> tuple[int, Promised, Readings]:
    """How many more machines of `charge` the host has room for, with what was promised and read."""
    readings = take_readings()
    promised = _count_promised(vms, charge, readings, limits)
    return count_fitting(charge, promised, readings=readings, limits=limits), promised, readings


async def _wait_and_make(vms: Path, vm_id: str, ticket: Ticket) -> VMFolder:
    begun, wait_s = time.monotonic(), ticket.limits.wait_s
    sweep_vms(vms)  # a machine whose owner was killed is promised nothing any more
    with DepartureWatch.open(vms) if wait_s else nullcontext() as watch:
        while True:
            made = await _try_make(vms, vm_id, ticket)
            if isinstance(made, VMFolder):
                return made
            if await _have_given_way(vms, made.resource):
                continue
            waited_s = time.monotonic() - begun
            if watch is None or waited_s >= wait_s:
                raise _no_room(made, waited_s=waited_s if wait_s else 0.0)
            await watch.wait(min(wait_s - waited_s, _LOOK_EVERY_S))


async def _have_given_way(vms: Path, resource: str) -> bool:
    """A layer of recipes is gone, which held some of what is short. False where none does."""
    return resource == "memory" and await LayerStore(layers_beside(vms)).give_way()


async def _try_make(vms: Path, vm_id: str, ticket: Ticket) -> VMFolder | Shortage:
    async with locked_folder(vms, wait_s=_LOCK_WAIT_S):
        return _find_shortage(vms, ticket.charge, ticket.limits) or VMFolder.create(vms, vm_id, ticket)


def _find_shortage(vms: Path, charge: Charge, limits: Limits) -> Shortage | None:
    readings = take_readings()
    promised = _count_promised(vms, charge, readings, limits)
    return find_shortage(charge, promised, readings=readings, limits=limits)


def _count_promised(vms: Path, charge: Charge, readings: Readings, limits: Limits) -> Promised:
    charged = list_charged(vms)
    charges = [each for _, each in charged]
    return count_promised(charge, charges, lambda: _read_uses(charged), readings=readings, limits=limits)


def _read_uses(charged: Sequence[tuple[str, Charge]]) -> list[int]:
    return [_read_use_mib(folder, charge) for folder, charge in charged]


def _read_use_mib(folder: str, charge: Charge) -> int:
    """The memory that the machine has for itself: none before it runs, and all of its own once it has ended."""
    try:
        pid = _find_pid(folder, find_version(folder))
    except LookupError:
        return 0
    used = read_resident(pid) if charge.has_ram_file else read_private(pid)
    return used // MIB if used else charge.most_mib


@lru_cache(maxsize=4096)
def _find_pid(folder: str, _version: tuple[int, ...]) -> int:
    # Reading its record costs ten times what reading its use does. A machine that was rolled back has another pid.
    record = find_record(Path(folder))
    if record is None:
        raise LookupError(folder)
    return record.pid


def _no_room(shortage: Shortage, *, waited_s: float = 0.0) -> NoRoom:
    resource = shortage.resource
    said = about("machine.refused", error=NoRoom.code)
    _log.info("a machine was refused: %s", shortage.reason, extra=said)
    return NoRoom(resource, shortage.reason, log="\n".join(shortage.lines), waited_s=waited_s, hint=_HINTS[resource])
