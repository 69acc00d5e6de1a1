"""A guest that QEMU stops, or that stands still, is told at once; whatever else the monitor does, the agent's line
decides.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time

import pytest

from vmfork.errors import GuestError, HostError, LaunchError
from vmfork.host.process import ProcessIdentity
from vmfork.machine import stall
from vmfork.machine.stall import unless_stuck, wait_stalled


class Machine:
    """Of this very process, whose memory stays as it is while nothing but sleep goes on."""

    argv = ("qemu", "-m")
    exit_code = None

    def __init__(self, stopped=None) -> None:
        self.stopped = stopped
        self.identity = ProcessIdentity(os.getpid(), 0)
        self.console_bytes = 0

    def log_tail(self) -> str:
        return "KVM internal error"

    def console_tail(self) -> str:
        return "the console"

    async def wait_stopped(self) -> str:
        return await (self.stopped or never())


async def soon(value):
    await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


async def never():
    await asyncio.Future()


async def test_a_guest_that_is_stopped_is_told_with_all_there_is() -> None:
    with pytest.raises(LaunchError, match=r"QEMU stopped the guest \(internal-error\)") as stopped:
        await unless_stuck(never(), Machine(soon("internal-error")))
    assert stopped.value.argv == ("qemu", "-m")
    assert "KVM internal error" in stopped.value.details()
    assert "the console" in stopped.value.details()


async def test_the_greeting_is_what_is_waited_for() -> None:
    assert await unless_stuck(soon("hello"), Machine()) == "hello"


async def test_a_monitor_that_is_lost_decides_nothing() -> None:
    assert await unless_stuck(soon("hello"), Machine(soon(HostError("lost")))) == "hello"
    with pytest.raises(GuestError, match="gone"):
        await unless_stuck(soon(GuestError("gone")), Machine(soon(HostError("lost"))))


@pytest.mark.parametrize("stopped", [None, HostError("lost")])
async def test_a_guest_that_stands_still_is_told_even_if_the_monitor_is_lost(stopped, monkeypatch) -> None:
    monkeypatch.setattr(stall, "STALL_LIMIT_S", 0.5)
    with pytest.raises(LaunchError, match=r"stood still for 0\.5 s") as stuck:
        await unless_stuck(never(), Machine(stopped and soon(stopped)))
    assert "the console" in stuck.value.details()


async def test_a_guest_that_prints_or_touches_memory_does_not_stand_still() -> None:
    machine, kept = Machine(), []

    async def advance() -> None:
        for _ in range(8):
            await asyncio.sleep(0.1)
            machine.console_bytes += 1
        for _ in range(8):
            await asyncio.sleep(0.1)
            kept.append(mmap.mmap(-1, 1 << 20))  # a fresh one: malloc may give memory that was touched before
            kept[-1].write(bytes(1 << 20))

    advancing = asyncio.create_task(advance())
    await wait_stalled(machine, 0.6)
    assert advancing.done()


async def test_time_in_which_the_host_had_no_cpu_for_it_does_not_count(monkeypatch) -> None:
    begin = time.monotonic()
    monkeypatch.setattr(stall, "read_starved_s", lambda _pid: min(time.monotonic() - begin, 1.0))
    assert await wait_stalled(Machine(), 0.5) == 0.5
    assert time.monotonic() - begin >= 1.5


async def test_a_boot_that_was_slow_may_rest_as_long_as_it_took_so_far() -> None:
    begin = time.monotonic()

    class Slow(Machine):
        @property
        def console_bytes(self) -> int:
            return int(min(time.monotonic() - begin, 1.0) * 20)

        @console_bytes.setter
        def console_bytes(self, _count: int) -> None:
            pass

    limit_s = await wait_stalled(Slow(), 0.3)
    assert limit_s >= 0.9
    assert time.monotonic() - begin >= 1.0 + limit_s - 0.2


async def test_a_cancel_ends_all_of_it() -> None:
    before = asyncio.all_tasks()
    waiting = asyncio.ensure_future(unless_stuck(never(), Machine()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before
