"""A guest that QEMU stops is told at once; whatever else the monitor does, the agent's line decides."""

from __future__ import annotations

import asyncio

import pytest

from vmfork.errors import GuestError, HostError, LaunchError
from vmfork.machine.launch import _unless_stopped


class Machine:
    argv = ("qemu", "-m")

    def __init__(self, stopped) -> None:
        self.stopped = stopped

    def log_tail(self) -> str:
        return "KVM internal error"

    def console_tail(self) -> str:
        return "the console"

    async def wait_stopped(self) -> str:
        return await self.stopped


async def soon(value):
    await asyncio.sleep(0)
    if isinstance(value, Exception):
        raise value
    return value


async def never():
    await asyncio.Future()


async def test_a_guest_that_is_stopped_is_told_with_all_there_is() -> None:
    with pytest.raises(LaunchError, match=r"QEMU stopped the guest \(internal-error\)") as stopped:
        await _unless_stopped(never(), Machine(soon("internal-error")))
    assert stopped.value.argv == ("qemu", "-m")
    assert "KVM internal error" in stopped.value.details()
    assert "the console" in stopped.value.details()


async def test_the_greeting_is_what_is_waited_for() -> None:
    assert await _unless_stopped(soon("hello"), Machine(never())) == "hello"


async def test_a_monitor_that_is_lost_decides_nothing() -> None:
    assert await _unless_stopped(soon("hello"), Machine(soon(HostError("lost")))) == "hello"
    with pytest.raises(GuestError, match="gone"):
        await _unless_stopped(soon(GuestError("gone")), Machine(soon(HostError("lost"))))


async def test_a_cancel_ends_both() -> None:
    before = asyncio.all_tasks()
    waiting = asyncio.ensure_future(_unless_stopped(never(), Machine(never())))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before
