"""Hard use of a machine that has clients: much output, deaf programs, a guest that goes down, senseless input."""

from __future__ import annotations

import hashlib
import json
import os
import random

import pytest

from tests.timing import wait_none
from tests.vm.cli_runner import vmfork as command
from tests.vm.test_detached import broker_of, end, folder_of
from tests.vm.test_handover import LIMIT_S
from vmfork.aio import VM
from vmfork.errors import ConfigError, DeadlineExceeded, ExecError, GuestError, MachineEnded
from vmfork.host.memory import read_resident
from vmfork.units import MIB
from vmfork.wire.frame import Channel

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

SIZE = 200_000_000


@pytest.fixture
async def vm(template):
    async with template.start() as vm:
        yield vm
        if os.path.exists(f"/proc/{vm.pid}"):
            await end(vm)


async def test_200_mb_go_each_way_whole_and_the_broker_stays_small(vm) -> None:
    data = random.Random(1).randbytes(SIZE)
    came = hashlib.sha256()
    async with VM.connect(vm.id) as client:
        result = await client.exec(["cat"], input=data, on_stdout=came.update, timeout_s=10 * LIMIT_S)
    assert (result.exit_code, came.hexdigest()) == (0, hashlib.sha256(data).hexdigest())
    assert read_resident(broker_of(vm)) < 8 * MIB


async def test_output_faster_than_its_reader_stops_its_own_program_alone(vm) -> None:
    async with VM.connect(vm.id) as slow, await slow.start(["yes"]) as program:
        _, first = await anext(aiter(program.output()))
        assert first.startswith(b"y\n")
        for _ in range(3):
            assert (await vm.exec(["echo", "on"], timeout_s=LIMIT_S)).stdout == "on\n"
        assert read_resident(broker_of(vm)) < 8 * MIB


async def test_a_program_that_ignores_term_is_killed_after_its_grace(vm) -> None:
    script = "trap '' TERM; echo deaf; (exec -a deaf sleep 1000) & while :; do wait; done"
    with pytest.raises(DeadlineExceeded) as error:
        await vm.exec(["bash", "-c", script], timeout_s=1, grace_s=0.2)
    assert error.value.operation
    await wait_none(vm, "[d]eaf")
    kept = await vm.start(["bash", "-c", script], background=True)
    await anext(aiter(kept.output()))
    await kept.kill("TERM")
    with pytest.raises(DeadlineExceeded):
        await kept.wait(timeout_s=0.2)
    await kept.kill()
    assert (await kept.wait(timeout_s=LIMIT_S)).number == 9


async def test_a_guest_that_goes_down_tells_its_clients_and_its_name_is_free(template) -> None:
    async with template.start(name="down") as vm, VM.connect("down") as other:
        with pytest.raises(MachineEnded) as error:
            await vm.shell("echo o > /proc/sysrq-trigger; sleep 1000", timeout_s=LIMIT_S)
        assert error.value.reason == "it ended by itself"
        with pytest.raises(MachineEnded):
            await other.ping()
        await other.stop(grace_s=0)
        assert not folder_of(vm).exists()
    async with template.start(name="down") as again:
        await again.stop(grace_s=0)


async def test_what_makes_no_sense_is_named_and_the_machine_goes_on(vm, template) -> None:
    big = {f"V{number}": "x" * 100_000 for number in range(100)}
    with pytest.raises((ConfigError, ExecError)):
        await vm.exec(["true"], env=big, timeout_s=LIMIT_S)
    with pytest.raises(ExecError, match="too long"):
        await vm.start(["true"], env=big, background=True)
    for one_too_large in ({"BIG": "x" * 131_072}, big):
        with pytest.raises(ConfigError, match="env"):
            await template.start(env=one_too_large)
    largest = {"A": "x" * 131_069} | {f"V{number}": "x" * 97_000 for number in range(1)}
    async with await template.fork(env=largest) as fork:
        assert (await fork.shell("printf %s $A | wc -c", timeout_s=LIMIT_S)).stdout == "131069\n"
    with pytest.raises(GuestError, match="no user 'nobody-such'"):
        await vm.exec(["true"], user="nobody-such", timeout_s=LIMIT_S)
    assert (await vm.shell("kill -9 1; echo on", timeout_s=LIMIT_S)).stdout == "on\n"  # its agent is nobody's to kill
    kept = await vm.start(["printf", r"\377\376ok"], background=True)
    assert [each async for each in kept.output()] == [(Channel.STDOUT, b"\xff\xfeok")]
    told = json.loads(command("logs", "--pid", str(kept.pid), vm.id, "--json").check().out)
    assert told["stdout"] == "��ok"
    refused = command("exec", "-it", vm.id, "touch", "/root/ran")
    assert (refused.status, "standard input is not a terminal" in refused.err) == (125, True)
    assert command("exec", "-u", "nobody-such", vm.id, "true").status == 125
    assert await vm.exists("/root/ran") is False
