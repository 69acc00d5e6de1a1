"""Time in the hands of a test: what it expects does not depend on how busy the host is."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from vmfork.aio import VM

T = TypeVar("T")


class HeldTime:
    """What an event loop takes for the time."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def __call__(self) -> float:
        return self._now_s

    def pass_by(self, seconds: float) -> None:
        """It is that much later. What was to happen until then happens in the loop's next turn."""
        self._now_s += seconds


@contextmanager
def held_time() -> Iterator[HeldTime]:
    """In the block the running loop's time stands still, but for what the test lets pass.

    Processes and threads are as fast as they are: the test waits for what they do, and then lets a limit pass.
    """
    loop = asyncio.get_running_loop()
    held = HeldTime(loop.time())
    loop.time = held  # type: ignore[method-assign]
    try:
        yield held
    finally:
        del loop.time


async def with_more_time(attempt: Callable[[float], Awaitable[T]], *limits_s: float) -> T:
    """What `attempt` gives for the first of the limits that this host is quick enough for.

    For a limit that another process measures, and in which something has to be done. What is wrong is wrong at each.
    """
    *first, last = limits_s
    for limit_s in first:
        with suppress(Exception, pytest.fail.Exception):
            return await attempt(limit_s)
    return await attempt(last)


def wait_until(is_so: Callable[[], bool], *, limit_s: float = 60.0) -> None:
    """It is so: for what other processes do, of which nothing tells."""
    end = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.02)


async def wait_none(vm: VM, pattern: str, *, limit_s: float = 60.0) -> None:
    """No process of the guest has such a command line: what was killed is gone once it was scheduled once more."""
    async with asyncio.timeout(limit_s):
        while (await vm.shell(f"pgrep -f '{pattern}'")).stdout:
            pass


async def least_skew_s(vm: VM, *, enough_s: float = 0.020) -> float:
    """The least bound of a guest's clock that was measured: each has a round trip in it, long where a host is busy."""
    least_s = float("inf")
    for _ in range(50):
        least_s = min(least_s, await vm.measure_clock_skew())
        if least_s <= enough_s:
            break
    return least_s
