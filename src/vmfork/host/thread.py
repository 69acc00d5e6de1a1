"""Work that would hold up the event loop, in a thread."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")


class StoppedError(Exception):
    """Nobody waits for what a thread does any more."""


def check_wanted(stop: threading.Event) -> None:
    """Raises `StoppedError` once `stop` is set: work that looks often enough ends by that."""
    if stop.is_set():
        raise StoppedError


async def in_thread(work: Callable[[threading.Event], T], *, interrupt: Callable[[], object] = lambda: None) -> T:
    """The result of `work(stop)`, run in a thread. On cancel `stop` is set and the thread has ended.

    `interrupt` is called on cancel too: it wakes a thread that waits for something.
    """
    stop = threading.Event()

    def wake() -> None:
        stop.set()
        interrupt()

    return await _see_through(asyncio.ensure_future(asyncio.to_thread(work, stop)), wake)


async def waking(work: Coroutine[Any, Any, T], wake: Callable[[], object]) -> T:
    """The result of `work`. On cancel it is cancelled and has ended; `wake` ends what its threads wait in."""
    task = asyncio.ensure_future(work)

    def end() -> None:
        try:
            wake()
        finally:
            task.cancel()

    return await _see_through(task, end)


async def _see_through(task: asyncio.Task[T], end: Callable[[], None]) -> T:
    """Its result. On cancel `end` is called, and the task has ended."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        try:
            end()
        finally:
            while not task.done():
                with suppress(asyncio.CancelledError):  # whoever asks twice waits as well
                    await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # that it was stopped is no news: asyncio would log it with its traceback
        raise
