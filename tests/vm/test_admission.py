"""Real machines and the host's room: refused with the arithmetic, let in when another ends, told by the commands."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.cli_runner import vmfork
from vmfork.admission.charge import DESCRIPTORS, EMULATOR_MIB
from vmfork.aio import VM, Factory, Template
from vmfork.config import FactoryConfig, VMConfig
from vmfork.errors import NoRoom
from vmfork.host import facts
from vmfork.machine.allotment import allot
from vmfork.machine.folder import find_ticket, list_records
from vmfork.units import MIB

pytestmark = pytest.mark.vm

LIMIT_S = 60.0
# More than any host has.
NOTHING_TO_GIVE = 1 << 31


async def test_without_room_no_machine_is_started_and_the_arithmetic_is_shown(template_name, instance) -> None:
    full = VMConfig(reserve_mib=NOTHING_TO_GIVE)
    template = await Template.open(template_name, config=full)
    for asked in (template.fork(), template.fork_many(3), VM.boot(full), template.fork(wait_s=0.1)):
        with pytest.raises(NoRoom) as refused:
            await asked
        assert str(NOTHING_TO_GIVE) in refused.value.details()
        assert "needed" in refused.value.details()
        assert refused.value.hint
    assert list_records(instance.vms) == []
    assert list(instance.vms.iterdir()) == []


async def test_who_waits_gets_the_machine_when_another_ends(template, instance) -> None:
    async with await template.fork() as first:
        ticket = find_ticket(first._running.folder.path)
        # All that its control group lets it have, and nobody can have more than that.
        assert ticket.charge.most_mib * MIB == allot(first.hardware, cpu_weight=100).memory_bytes
        assert 256 // 4 + EMULATOR_MIB <= ticket.charge.share_mib < ticket.charge.most_mib
        # It was promised more than the host has, whatever other programs do meanwhile.
        promised = replace(ticket.charge, share_mib=facts.total_memory_bytes() // MIB, most_mib=NOTHING_TO_GIVE)
        first._running.folder.write_ticket(replace(ticket, charge=promised))
        with pytest.raises(NoRoom, match="of memory are needed"):
            await template.fork()
        waiting = asyncio.ensure_future(template.fork(wait_s=LIMIT_S))
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
    async with await waiting as vm:
        assert (await vm.exec(["true"], timeout_s=LIMIT_S)).ok
        assert [record.id for record in list_records(instance.vms)] == [vm.id]


async def test_a_machine_keeps_no_more_open_and_starts_no_more_than_it_is_counted_with(template) -> None:
    def count_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count_open()
    async with await template.fork() as vm:
        await vm.exec(["true"], timeout_s=LIMIT_S)
        await vm.pause()
        await vm.resume()
        assert 0 < count_open() - before <= DESCRIPTORS
        charge = find_ticket(vm._running.folder.path).charge
        threads = len(list(Path(f"/proc/{vm.pid}/task").iterdir()))
        assert threads + 1 <= charge.tasks  # its keeper


async def test_a_pool_without_room_says_so_and_waits(template_name) -> None:
    vm = VMConfig(reserve_mib=NOTHING_TO_GIVE)
    config = FactoryConfig(vm=vm, template=True, template_name=template_name, build="background", cache=1)
    async with Factory(config) as factory:
        (pool,) = factory._bases
        await asyncio.wait_for(pool.wait_stuck(), LIMIT_S)
        status = pool.status()
        assert "the host has no room" in status.last_error
        assert (status.ready, status.refilling, status.failed) == (0, 1, 0)


def test_the_commands_tell_it(template_name) -> None:
    full = {"VMFORK_VM_RESERVE_MIB": str(NOTHING_TO_GIVE)}
    done = vmfork("run", "--json", "-t", template_name, "--wait", "100ms", "--", "true", env=full)
    assert done.status == 125
    error = json.loads(done.out)["error"]
    assert error["code"] == "no-room"
    assert "--wait" in error["hint"]
    assert "after 0." in error["message"]
    assert str(NOTHING_TO_GIVE) in done.err
    assert "hint: " in done.err
    for env, fits in ((full, False), ({}, True)):
        told = json.loads(vmfork("doctor", "--json", env=env).out)
        (check,) = [check for check in told["checks"] if check["name"] == "room"]
        assert check["found"].startswith("0 more forks of 256 MiB") is not fits
        assert "= to give" in check["detail"]
