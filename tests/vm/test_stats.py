"""What a machine takes and what went through it, from its owner, from a client, and on the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import vmfork
from tests.vm.cli_runner import vmfork as command
from tests.vm.test_detached import end
from tests.vm.test_handover import LIMIT_S
from vmfork.aio import VM
from vmfork.errors import MachineEnded

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

DATA = b"x" * 300_000


async def test_of_a_machine_of_ones_own(any_vm) -> None:
    before = await any_vm.stats()
    assert await any_vm.exec(["cat"], input=DATA, timeout_s=LIMIT_S)
    async with await any_vm.start(["sleep", "1000"]), await any_vm.start(["sleep", "1000"]):
        after = await any_vm.stats()
    assert (before.programs, after.programs) == (0, 2)
    assert len(DATA) <= after.sent_bytes - before.sent_bytes < 2 * len(DATA)
    assert len(DATA) <= after.received_bytes - before.received_bytes < 2 * len(DATA)
    assert after.cpu_s >= before.cpu_s > 0
    assert after.own_bytes > 0
    assert (after.shared_bytes > 0) is bool(any_vm.template)


async def test_a_fork_has_no_huge_pages_which_would_be_its_own_to_their_ends(any_vm) -> None:
    status = Path(f"/proc/{any_vm.pid}/status").read_text()
    assert f"THP_enabled:\t{int(not any_vm.template)}\n" in status


async def test_of_a_machine_that_has_clients_all_of_them_count(template) -> None:
    async with template.start() as one, VM.connect(one.id) as other:
        before = await one.stats()
        await other.exec(["cat"], input=DATA, timeout_s=LIMIT_S)
        async with await other.start(["sleep", "1000"]):
            await one.start(["sleep", "1000"], background=True)
            mine, theirs = await asyncio.gather(one.stats(), other.stats())
            assert (before.programs, mine.programs, theirs.programs) == (0, 2, 2)
        assert len(DATA) <= mine.sent_bytes - before.sent_bytes < 2 * len(DATA)
        assert len(DATA) <= mine.received_bytes - before.received_bytes < 2 * len(DATA)
        assert mine.shared_bytes > 0
        await end(one)
        with pytest.raises(MachineEnded):
            await other.stats()


def test_the_command_and_the_blocking_form(template_name) -> None:
    vm_id = command("start", "-t", template_name, "--name", "counted", "--", "sleep", "1000").check().out.strip()
    try:
        told = json.loads(command("stats", "counted", "--json").check().out)
        assert (told["id"], told["name"], told["programs"]) == (vm_id, "counted", 1)
        assert min(told["sent_bytes"], told["received_bytes"], told["own_bytes"], told["shared_bytes"]) > 0
        assert "programs   1" in command("stats", vm_id[:8]).check().out
        with vmfork.VM.connect("counted") as vm:
            assert vm.stats().programs == 1
    finally:
        command("stop", "--grace", "0", vm_id).check()
    with vmfork.Template.open(template_name).fork() as vm:
        told = json.loads(command("stats", vm.id, "--json").check().out)
        assert (told["programs"], told["cpu_s"] > 0) == (None, True)
        assert "programs" not in command("stats", vm.id).check().out
    assert command("stats", vm.id).status == 1
