"""Machines are let in where the host has room: across processes, after waiting, and with the tickets that stay true."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import time
from dataclasses import replace

import pytest

from tests.unit.store.samples import build_small
from vmfork.admission.charge import Charge, Ticket
from vmfork.admission.rule import Readings
from vmfork.adopt.identity import Identity
from vmfork.config import Limits, layers_beside
from vmfork.errors import NoRoom
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine import room
from vmfork.machine.facts import MachineFacts
from vmfork.machine.folder import VMFolder, VMRecord, find_ticket, list_charged, new_vm_id
from vmfork.machine.room import add_to_ticket, check_room, count_room, make_folder, ticket_kept
from vmfork.store import TemplateStore

LIMIT_S = 30.0
FORK = Charge(share_mib=100, most_mib=400, tasks=6)
LIMITS = Limits(reserve_mib=0)
HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)


@pytest.fixture
def vms(tmp_path):
    return tmp_path / "vms"


@pytest.fixture
def host(monkeypatch):
    """Gives the host other readings."""

    def give(available_mib: int, **more) -> None:
        readings = Readings(available_mib=available_mib, total_mib=100_000, **more)
        monkeypatch.setattr(room, "take_readings", lambda: readings)

    return give


async def let_in(vms, *, limits: Limits = LIMITS, charge: Charge = FORK) -> VMFolder:
    return await make_folder(vms, new_vm_id(), charge, limits)


def record(folder: VMFolder, process: ProcessIdentity) -> None:
    facts = MachineFacts(identity=Identity.fresh(folder.path.name, template="py"), hardware=HARDWARE, image="default")
    folder.record(VMRecord(facts=facts, process=process, owner_pid=os.getpid()))


async def test_as_many_are_let_in_as_can_be_promised_their_share(vms, host) -> None:
    host(350)
    folders = [await let_in(vms) for _ in range(3)]
    with pytest.raises(NoRoom) as refused:
        await let_in(vms)
    assert refused.value.resource == "memory"
    assert "100 MiB of memory are needed, and 50 MiB can be promised" in str(refused.value)
    assert "3 running" in refused.value.details()
    assert refused.value.hint
    assert {path for path, _ in list_charged(vms)} == {str(folder.path) for folder in folders}
    folders.pop().close()
    folders.append(await let_in(vms))
    for folder in folders:
        folder.close()
    assert list(vms.iterdir()) == []


async def test_who_waits_is_let_in_when_a_machine_ends(vms, host, monkeypatch) -> None:
    monkeypatch.setattr(room, "_LOOK_EVERY_S", LIMIT_S)  # only the end of the machine can wake it in time
    host(150)
    first = await let_in(vms)
    waiting = asyncio.ensure_future(let_in(vms, limits=replace(LIMITS, wait_s=2 * LIMIT_S)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    begun = time.monotonic()
    first.close()
    (await asyncio.wait_for(waiting, LIMIT_S)).close()
    assert time.monotonic() - begun < LIMIT_S


async def test_who_waits_sees_what_other_programs_give_back(vms, host, monkeypatch) -> None:
    monkeypatch.setattr(room, "_LOOK_EVERY_S", 0.01)
    host(50)
    waiting = asyncio.ensure_future(let_in(vms, limits=replace(LIMITS, wait_s=LIMIT_S)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    host(150)
    (await waiting).close()


async def test_waiting_ends_with_the_arithmetic_and_nothing_is_left(vms, host) -> None:
    host(50)
    with pytest.raises(NoRoom, match=r"after \d+\.\d s") as refused:
        await let_in(vms, limits=replace(LIMITS, wait_s=0.05))
    assert refused.value.waited_s >= 0.05
    assert list(vms.iterdir()) == []


async def test_on_cancel_nothing_is_left_of_who_waited(vms, host) -> None:
    host(50)
    before = len(os.listdir("/proc/self/fd"))
    waiting = asyncio.ensure_future(let_in(vms, limits=replace(LIMITS, wait_s=LIMIT_S)))
    for _ in range(5):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert list(vms.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def test_with_an_overcommit_of_none_nothing_is_looked_at(vms, monkeypatch) -> None:
    def look():
        raise AssertionError("nobody need look")

    monkeypatch.setattr(room, "take_readings", look)
    folder = await let_in(vms, limits=replace(LIMITS, overcommit=0))
    assert [charge for _, charge in list_charged(vms)] == [FORK]
    folder.close()


async def test_what_a_killed_owner_was_promised_is_given_to_others(vms, host) -> None:
    host(150)
    (await let_in(vms)).release()
    (await let_in(vms)).close()


async def test_what_a_machine_uses_is_not_counted_twice(vms, host) -> None:
    """The kernel's figure of what is available is without it already."""
    with subprocess.Popen(["sleep", "60"]) as child:
        host(450)
        first = await let_in(vms)
        record(first, ProcessIdentity.of(child.pid))
        count, promised, _ = count_room(vms, FORK, LIMITS)
        used_mib = room._read_use_mib(str(first.path), FORK)
        assert promised.owed_mib == FORK.share_mib - used_mib
        assert count == 3
        child.kill()
        child.wait()
        # A machine that has ended and is not yet removed keeps nobody out.
        assert count_room(vms, FORK, LIMITS)[1].owed_mib == 0
        first.close()


def _ask(vms, begin, leave, answers) -> None:
    room.take_readings = lambda: Readings(available_mib=250, total_mib=100_000)

    async def ask() -> None:
        try:
            folder = await let_in(vms)
        except NoRoom:
            answers.put("refused")
            return
        answers.put("in")
        leave.wait(LIMIT_S)
        folder.close()

    begin.wait(LIMIT_S)
    asyncio.run(ask())


def test_of_processes_that_ask_at_once_no_more_are_let_in_than_fit(vms) -> None:
    context, asking = multiprocessing.get_context("fork"), 6
    begin, leave, answers = context.Event(), context.Event(), context.Queue()
    processes = [context.Process(target=_ask, args=(vms, begin, leave, answers)) for _ in range(asking)]
    for process in processes:
        process.start()
    begin.set()
    said = sorted(answers.get(timeout=LIMIT_S) for _ in processes)
    leave.set()  # not before all have asked
    for process in processes:
        process.join(LIMIT_S)
    answers.close()
    assert [process.exitcode for process in processes] == [0] * asking
    assert said == ["in"] * 2 + ["refused"] * 4
    assert list(vms.iterdir()) == []


async def test_growth_is_promised_and_taken_back_when_it_fails(vms, host) -> None:
    host(1000)
    folder = await let_in(vms)
    await add_to_ticket(folder, 512)
    assert find_ticket(folder.path) == Ticket(charge=FORK.grown(512), limits=LIMITS)
    with pytest.raises(NoRoom, match="512 MiB of memory are needed"):
        await add_to_ticket(folder, 512)
    with pytest.raises(ValueError, match="the guest"), ticket_kept(folder):
        await add_to_ticket(folder, 128)
        raise ValueError("the guest did not take it")
    assert find_ticket(folder.path).charge == FORK.grown(512)
    await add_to_ticket(folder, -512)
    assert find_ticket(folder.path).charge == FORK
    folder.close()


async def test_a_machine_without_a_ticket_is_counted_with_nothing_and_grows_where_there_is_room(vms, host) -> None:
    """An older vmfork started it."""
    vms.mkdir(mode=0o700)
    old = VMFolder.create(vms, new_vm_id())
    (vms / "not-ours").mkdir()
    damaged = VMFolder.create(vms, new_vm_id())
    (damaged.path / "ticket.json").write_text("{")
    host(6000)
    assert list_charged(vms) == []
    await add_to_ticket(old, 1000)  # 5000 stay the host's
    with pytest.raises(NoRoom):
        await add_to_ticket(old, 1001)
    assert list_charged(vms) == []
    (await let_in(vms)).close()
    for folder in (old, damaged):
        folder.close()


@pytest.fixture
async def kept(vms, monkeypatch):
    """Two layers of recipes beside the machines; the host has 100 MiB for each that is gone, and nothing else."""
    store = TemplateStore(layers_beside(vms))
    for name in ("one", "two"):
        await build_small(store, name)

    def read() -> Readings:
        gone = 2 - len(store.list_names())
        return Readings(available_mib=100 * gone, total_mib=100_000, descriptors_left=1000)

    monkeypatch.setattr(room, "take_readings", read)
    yield store
    store.clear()


async def test_layers_of_recipes_give_way_to_machines_one_by_one(vms, kept) -> None:
    first = await let_in(vms)
    assert len(kept.list_names()) == 1
    second = await let_in(vms, limits=replace(LIMITS, wait_s=LIMIT_S))  # at once: nobody is waited for
    assert kept.list_names() == []
    with pytest.raises(NoRoom):
        await let_in(vms)
    for folder in (first, second):
        folder.close()


async def test_layers_give_way_to_the_growth_of_a_machine_and_to_several_forks(vms, kept) -> None:
    folder = await let_in(vms, limits=replace(LIMITS, overcommit=0.0))
    await add_to_ticket(folder, 10)
    assert len(kept.list_names()) == 2  # who is not counted takes nobody's room
    folder.close()
    folder = await let_in(vms, charge=Charge(share_mib=10, most_mib=10, tasks=1))
    assert len(kept.list_names()) == 1
    await add_to_ticket(folder, 100)
    assert kept.list_names() == []
    folder.close()
    await build_small(kept, "three")
    many = Limits(reserve_mib=0, overcommit=10.0)
    await check_room(vms, HARDWARE, many, 1)
    assert kept.list_names() == []
    with pytest.raises(NoRoom, match="3 forks of 256 MiB were asked for, 1 have room"):
        await check_room(vms, HARDWARE, many, 3)


async def test_layers_stay_where_something_else_than_memory_is_short(vms, kept, host) -> None:
    host(100_000, descriptors_left=1)
    with pytest.raises(NoRoom) as refused:
        await let_in(vms)
    assert refused.value.resource == "file descriptors"
    assert len(kept.list_names()) == 2
