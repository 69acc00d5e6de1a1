"""A machine ends by itself when its time is over, and whoever uses it is told why."""

from __future__ import annotations

import time

import pytest

import vmfork
from tests.vm.test_detached import forget
from tests.vm.test_handover import LIMIT_S, wait_ended
from vmfork.aio import VM
from vmfork.errors import ConfigError, MachineEnded

pytestmark = [pytest.mark.vm, pytest.mark.kvm]

OVER, IDLE = "its time to live is over", "nobody used it for as long as it may be idle"


@pytest.mark.parametrize("made", ["booted", "forked", "started"])
async def test_at_its_end_a_program_that_runs_is_told_why(template, made) -> None:
    make = {"booted": VM.boot, "forked": template.fork, "started": template.start}[made]
    async with await make(ttl_s=0.5) as vm:
        for _ in range(2):
            with pytest.raises(MachineEnded, match=f"the machine ended: {OVER}") as error:
                await vm.exec(["sleep", "1000"], timeout_s=LIMIT_S)
            assert error.value.reason == OVER
        await wait_ended(vm.pid)
    if made == "started":
        forget(vm)


async def test_a_program_that_runs_is_use(template) -> None:
    async with await template.fork(idle_ttl_s=0.5) as vm:
        # Nothing else has the event loop between this request and the fork.
        await vm.exec(["sleep", "1"], timeout_s=LIMIT_S, check=True)
        await wait_ended(vm.pid)
        with pytest.raises(MachineEnded) as error:
            await vm.ping()
        assert error.value.reason == IDLE


async def test_each_of_many_has_its_time(template) -> None:
    vms = await template.fork_many(2, ttl_s=0.2)
    for vm in vms:
        await wait_ended(vm.pid)
        await vm.aclose()


@pytest.mark.parametrize("given", [{"ttl_s": -1}, {"idle_ttl_s": "an hour"}], ids=str)
async def test_what_is_no_time_is_refused_before_a_machine_is_made(template, given) -> None:
    for make in (template.fork, VM.boot, lambda **given: template.fork_many(2, **given)):
        with pytest.raises(ConfigError, match=next(iter(given))):
            await make(**given)


def test_the_blocking_form(template_name) -> None:
    with vmfork.Template.open(template_name).fork(idle_ttl_s=0.1) as vm, pytest.raises(MachineEnded) as error:
        while True:
            vm.ping()
            time.sleep(0.2)
    assert error.value.reason == IDLE
