"""The owner of a machine: each state it can be in, as its docstring draws it, and what is known of the machine."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import time
from pathlib import Path

import pytest

from vmfork.adopt.identity import Identity
from vmfork.errors import Closed, DeadlineExceeded, GuestError, HostError
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine.facts import MachineFacts
from vmfork.machine.folder import VMFolder, VMRecord, find_record, is_paused, list_records
from vmfork.machine.running import Running
from vmfork.wire.message import ClockReading

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)
ME = ProcessIdentity.of(os.getpid())


class Machine:
    """A hypervisor's process that keeps what it was told; `fails` and `hangs` are for the next request."""

    identity = ME

    def __init__(self) -> None:
        self.told: list[str] = []
        self.fails: Exception | None = None
        self.hangs = False

    async def _do(self, what: str) -> None:
        self.told.append(what)
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            raise self.fails

    async def pause(self) -> None:
        await self._do("pause")

    async def resume(self) -> None:
        await self._do("resume")

    async def check(self) -> None:
        await self._do("check")

    async def aclose(self) -> None:
        self.told.append("close")


class Agent:
    """The line to an agent whose clock is off by `off_s`."""

    off_s = 0.0
    closed = False

    async def clock(self, set_to, *, host_clock, timeout_s) -> ClockReading:
        sent = (set_to or host_clock)()
        return ClockReading(sent + round(self.off_s * 1e9), 1, sent, sent)

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
async def running(tmp_path):
    folder = VMFolder.create(tmp_path, "0123456789ab")
    facts = MachineFacts(identity=Identity.fresh("0123456789ab", template="py"), hardware=HARDWARE, image="default")
    running = Running(facts, folder=folder, machine=Machine(), agent=Agent())
    yield running
    running.state = "closed"  # or it would be closed when it is dropped
    folder.close()


async def test_a_machine_stands_still_and_runs_on(running) -> None:
    await running.pause()
    assert (running.state, running.stands_still, is_paused(running.folder.path)) == ("paused", True, True)
    await running.resume(timeout_s=1)
    assert not is_paused(running.folder.path)
    await running.park()
    assert (running.state, running.stands_still) == ("parked", True)
    await running.unpark(timeout_s=1)
    assert (running.state, running.stands_still) == ("running", False)
    assert running.machine.told == ["pause", "resume", "pause", "resume"]


async def test_a_clock_that_cannot_be_proven_is_told_and_the_guest_runs_all_the_same(running) -> None:
    """`resume` promises the host's clock: it once gave up after twenty tries, and said nothing."""
    await running.pause()
    running.agent.off_s = 5.0
    with pytest.raises(GuestError, match="could not be proven"):
        await running.resume(timeout_s=0.05)
    assert (running.state, is_paused(running.folder.path)) == ("running", False)


async def test_a_pause_the_hypervisor_refused_changed_nothing(running) -> None:
    running.machine.fails = HostError("no")
    with pytest.raises(HostError):
        await running.pause()
    assert (running.state, is_paused(running.folder.path)) == ("running", False)


async def test_a_cancelled_pause_may_have_stopped_the_guest_and_resume_mends_it(running) -> None:
    running.machine.hangs = True
    pausing = asyncio.create_task(running.pause())
    await asyncio.sleep(0)
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
    assert (running.state, is_paused(running.folder.path)) == ("paused", True)
    running.machine.hangs = False
    await running.resume(timeout_s=1)
    assert (running.state, is_paused(running.folder.path)) == ("running", False)


async def test_a_host_that_refuses_the_note_is_no_reason_not_to_pause(running, monkeypatch) -> None:
    monkeypatch.setattr(Path, "touch", lambda *_args, **_options: (_ for _ in ()).throw(OSError(28, "no space")))
    await running.pause()
    assert running.state == "paused"


@pytest.mark.parametrize("act", ["check", "unpark"])
async def test_a_hypervisor_that_hangs_is_not_waited_for(running, act) -> None:
    await running.park()
    running.machine.hangs = True
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await getattr(running, act)(timeout_s=0.05)
    assert time.monotonic() - begun < 60


def drawn_states() -> list[str]:
    table = [line.split("|") for line in inspect.getdoc(Running).splitlines() if line.startswith("| ")]
    return [row[1].strip() for row in table[2:]]


def test_every_state_is_in_the_table() -> None:
    assert drawn_states() == ["running", "paused", "parked", "detached", "closed"]


async def test_a_machine_that_is_nobodys_is_not_resumed_and_an_owners_not_unparked(running) -> None:
    """Who mixes them up gives a machine without an identity, or one with the clock of its pause."""
    with pytest.raises(AssertionError):
        await running.unpark(timeout_s=1)
    await running.park()
    for act in (running.pause, lambda: running.resume(timeout_s=1)):
        with pytest.raises(AssertionError):
            await act()
    assert running.machine.told == ["pause"]


@pytest.mark.parametrize("state", ["detached", "closed"])
async def test_what_is_not_ours_any_more_does_nothing(running, state) -> None:
    machine = running.machine
    if state == "closed":
        await running.aclose()
    else:
        running.state = "detached"
        running.folder.release()
    told = list(machine.told)
    for act in (
        running.pause,
        running.park,
        lambda: running.resume(timeout_s=1),
        lambda: running.unpark(timeout_s=1),
        lambda: running.check(timeout_s=1),
    ):
        with pytest.raises(Closed):
            await act()
    with pytest.raises(Closed):
        _ = running.agent
    await running.aclose()
    assert machine.told == told


@pytest.mark.parametrize("state", ["running", "paused", "parked"])
async def test_closing_ends_all_of_it_once(running, state) -> None:
    if state != "running":
        await (running.pause() if state == "paused" else running.park())
    agent, path = running.agent, running.folder.path
    running.record(owner_pid=os.getpid())
    await running.aclose()
    await running.aclose()
    assert running.machine.told.count("close") == 1
    assert agent.closed
    assert not path.exists()


async def test_the_record_says_what_is_known_and_who_owns_it(running) -> None:
    running.record(owner_pid=0)
    path = running.folder.path
    assert find_record(path) == VMRecord(facts=running.facts, process=ME, owner_pid=0)
    grown = Hardware(**{**{name: getattr(HARDWARE, name) for name in ("machine", "accel", "cpu_model")}, "cpus": 2,
                        "memory_mib": 512})  # fmt: skip
    running.change_hardware(grown)
    record = find_record(path)
    assert (record.cpus, record.memory_mib, record.owner_pid) == (2, 512, os.getpid())
    assert running.facts.hardware == grown


async def test_a_newer_vmforks_machine_is_listed(running) -> None:
    """A field that this vmfork does not know of once hid the machine from the list, and from the sweep's kill."""
    running.record(owner_pid=os.getpid())
    file = running.folder.path / "vm.json"
    record = json.loads(file.read_bytes())
    record["labels"] = {"a": "b"}
    record["facts"]["network"] = "none"
    record["facts"]["hardware"]["disks"] = []
    file.write_text(json.dumps(record))
    (found,) = list_records(running.folder.path.parent)
    assert (found.id, found.template, found.memory_mib) == ("0123456789ab", "py", 256)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"facts": {}}'])
def test_a_damaged_record_is_none(tmp_path, content) -> None:
    Path(tmp_path, "vm.json").write_text(content)
    assert find_record(tmp_path) is None
