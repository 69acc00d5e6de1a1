"""The one background event loop on which the blocking API runs."""

from __future__ import annotations

import asyncio
import atexit
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_CLEAN_UP_LIMIT_S = 30.0


class Portal:
    """Owner of a daemon thread with an event loop, started at the first call.

    The thread lives as long as the process: the kernel kills a VM when the thread that started it ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returned. An interrupt (Ctrl-C) cancels it, waits for its clean-up, and is raised."""
        done: Future[None] = Future()
        future = asyncio.run_coroutine_threadsafe(_marking_end(work, done), self._get_loop())
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                wait([done], timeout=_CLEAN_UP_LIMIT_S)
            raise

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._loop.run_forever, name="vmfork", daemon=True)
                thread.start()
                atexit.register(self._stop)
            return self._loop

    def _stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)


async def _marking_end(work: Coroutine[Any, Any, T], done: Future[None]) -> T:
    # A cancelled concurrent future counts as done at once; this one when the clean-up really is.
    try:
        return await work
    finally:
        done.set_result(None)


portal = Portal()
