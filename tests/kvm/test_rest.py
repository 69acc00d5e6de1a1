"""A machine under KVM that stood for minutes goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from tests.timing import least_skew_s
from vmfork.adopt.clock import SKEW_LIMIT_S
from vmfork.aio import Template
from vmfork.config import VMConfig

pytestmark = [pytest.mark.vm, pytest.mark.kvm, pytest.mark.slow, pytest.mark.limit_s(900)]

# Longer than the kernel's watchdogs wait: 20 s for a soft lockup, 21 s for RCU, 120 s for a task that hangs.
PAUSE_S = 150.0


async def test_a_fork_paused_for_minutes_has_the_time_of_now_and_no_complaints(working_kvm) -> None:
    """Of a template whose accelerator was demanded, where the others leave it to vmfork."""
    template = await Template.build("demanded", VMConfig(accel="kvm"))
    try:
        async with (
            await template.fork() as vm,
            await vm.start(["sh", "-c", "while sleep 0.1; do date +%s > /root/tick; done"]),
        ):
            await vm.pause()
            await asyncio.sleep(PAUSE_S)
            await vm.resume()
            assert await least_skew_s(vm, enough_s=SKEW_LIMIT_S) <= SKEW_LIMIT_S
            clock = await vm.read_file("/sys/devices/system/clocksource/clocksource0/current_clocksource")
            assert clock == b"kvm-clock\n"
            # What ran at the pause runs, and reads the same clock.
            await vm.shell("rm /root/tick; until test -s /root/tick; do sleep 0.1; done", check=True, timeout_s=60)
            assert abs(int(await vm.read_file("/root/tick")) - time.time()) < 5
            said = (await vm.exec(["dmesg"], check=True)).stdout
            # That the TSC ran on, its kernel may find, and trust it no more: it goes by kvm-clock.
            assert not re.search("lockup|rcu.*stall|blocked for more", said), said
    finally:
        await template.remove()
