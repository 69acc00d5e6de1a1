"""A thread that works for somebody ends before they go, however often they are told to."""

from __future__ import annotations

import asyncio
import threading

import pytest

from vmfork.host.thread import check_wanted, in_thread, waking


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_who_is_cancelled_waits_for_the_thread_and_nothing_is_logged(times, caplog) -> None:
    begun, asked, may_end, has_ended = (threading.Event() for _ in range(4))

    def work(stop: threading.Event) -> None:
        begun.set()
        try:
            assert stop.wait(60)
            asked.set()
            assert may_end.wait(60)
            check_wanted(stop)
        finally:
            has_ended.set()

    task = asyncio.ensure_future(in_thread(work))
    await asyncio.to_thread(begun.wait)
    for _ in range(times):
        task.cancel()
        await asyncio.to_thread(asked.wait)
        await asyncio.sleep(0)
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_ended.is_set()
    del task
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_what_it_gives_or_raises_is_given() -> None:
    assert await in_thread(lambda stop: stop.is_set()) is False
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda _: 1 / 0)


async def test_a_thread_that_waits_is_woken() -> None:
    begun, woken = threading.Event(), threading.Event()

    def work(_stop: threading.Event) -> None:
        begun.set()
        assert woken.wait(60)

    task = asyncio.ensure_future(in_thread(work, interrupt=woken.set))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_work_that_waits_for_a_thread_and_for_more_has_ended_when_whoever_asked_gave_up() -> None:
    """What it waits for beside the thread may not come at all: another's lock."""
    closed, never = threading.Event(), asyncio.Event()
    for wait in (lambda: in_thread(lambda _: closed.wait(60)), never.wait):
        closed.clear()
        begun, has_ended = asyncio.Event(), []

        async def work(wait=wait, begun=begun, has_ended=has_ended) -> None:
            begun.set()
            try:
                await wait()
            finally:
                has_ended.append(True)

        task = asyncio.ensure_future(waking(work(), closed.set))
        await begun.wait()
        task.cancel()
        async with asyncio.timeout(30):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert has_ended
