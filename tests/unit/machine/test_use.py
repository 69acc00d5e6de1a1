"""What a machine takes is told of one that runs, and of no other."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest

from vmfork.adopt.identity import Identity
from vmfork.errors import GuestError, MachineEnded
from vmfork.host.process import ProcessIdentity
from vmfork.hypervisor.base import Hardware
from vmfork.machine.facts import MachineFacts
from vmfork.machine.use import read_stats

HARDWARE = Hardware(machine="pc-q35-7.2", accel="tcg", cpu_model="max", cpus=1, memory_mib=256)
FACTS = MachineFacts(identity=Identity.fresh("0123456789ab", template="t"), hardware=HARDWARE, image="i")


class Agent:
    """The line to an agent, or to a broker that counts what it is made with."""

    traffic = (10, 20)
    lost: Exception | None = None

    def __init__(self, **counts: int) -> None:
        self.counts = counts

    async def count(self) -> dict[str, int]:
        return self.counts

    def count_programs(self) -> int:
        return 3


def running(agent: Agent, *, shared: bool = False, pid: int | None = None, ended: bool = False):
    machine = SimpleNamespace(identity=ProcessIdentity(pid or os.getpid(), 1), has_ended=ended, exit_code=-9)
    return SimpleNamespace(agent=agent, facts=FACTS, machine=machine, is_shared=shared)


async def test_an_owner_counts_itself_and_a_client_asks_the_broker() -> None:
    mine = await read_stats(running(Agent()))
    assert (mine.sent_bytes, mine.received_bytes, mine.programs) == (10, 20, 3)
    assert mine.cpu_s > 0
    assert mine.own_bytes > 0
    shared = await read_stats(running(Agent(sent=1, received=2, programs=4, clients=5), shared=True))
    assert (shared.sent_bytes, shared.received_bytes, shared.programs) == (1, 2, 4)


async def test_a_broker_of_before_that_does_not_count_is_named() -> None:
    with pytest.raises(GuestError, match="older vmfork"):
        await read_stats(running(Agent(clients=1, requests=0), shared=True))


async def test_one_that_has_ended_is_told_however_it_is_seen() -> None:
    lost = Agent()
    lost.lost = MachineEnded(None, reason="it was stopped")
    with pytest.raises(MachineEnded, match="it was stopped"):
        await read_stats(running(lost))
    with pytest.raises(MachineEnded, match="-9"):
        await read_stats(running(Agent(), ended=True))
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(MachineEnded):
        await read_stats(running(Agent(), pid=child.pid))
