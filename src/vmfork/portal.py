"""The one background event loop on which the blocking API runs."""

from __future__ import annotations

import asyncio

# Here, before our thread is there: it has a lock taken around each fork. Were it loaded by the loop's first `to_thread`
# while another thread forks, the lock would be released and not taken, under the hands of whoever holds it: the call
# failed ("release unlocked lock") in 4 of 40 such programs, Python 3.13.
import concurrent.futures.thread  # noqa: F401
import os
import sys
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

from vmfork.border import translating
from vmfork.errors import Closed, WrongContext
from vmfork.host.bound import called_from, find_caller

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_CLEAN_UP_LIMIT_S = 30.0
_OURS = "the blocking API of vmfork"


class Portal:
    """Owner of a daemon thread with an event loop, started at the first call.

    The thread is never stopped, so that functions registered with `atexit` or `weakref.finalize` can still use it. Past
    that point the interpreter's threads stand still, and no answer would come: a call ends at once then, and the
    machines end with the process. In a child made by os.fork(2), where the thread is missing, it begins anew.
    """

    def __init__(self) -> None:
        self._abandoned: list[object] = []
        self._begin()
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def _begin_anew(self) -> None:
        # The parent's loop must not be collected here: it would warn that it was not closed, and closing it would
        # wake the parent's through the pipe that both have.
        self._abandoned += [self._loop, self._thread]
        self._begin()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returned. An interrupt (Ctrl-C) cancels it, waits for its clean-up, and is raised.

        Raises `WrongContext` when it is called from the loop's own thread, `Closed` when the interpreter is ending.
        """
        try:
            self._check()
            with translating():
                loop = self._get_loop()
        except BaseException:
            work.close()  # it was never awaited, on purpose
            raise
        done: Future[None] = Future()
        asked = called_from.set(find_caller())
        try:
            future = asyncio.run_coroutine_threadsafe(_marking_end(work, done), loop)
        finally:
            called_from.reset(asked)  # what this thread makes by itself later is made elsewhere
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                wait([done], timeout=_CLEAN_UP_LIMIT_S)
            raise

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """What the coroutine closes is closed. Does nothing when the interpreter is ending, which closes it anyway."""
        if sys.is_finalizing():
            work.close()
        else:
            self.run(work)

    def _check(self) -> None:
        if sys.is_finalizing():
            raise Closed(_OURS, "the interpreter is ending")
        if self._thread is not None and threading.get_ident() == self._thread.ident:
            raise WrongContext(
                _OURS,
                "was called from one of its own callbacks, such as a progress listener, and would wait for itself",
                hint="let the callback return, and call from another thread or afterwards",
            )

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="vmfork", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    loop.close()
                    if "shutdown" not in str(error):  # the limit of threads
                        raise
                    # Python 3.12: no new threads while the interpreter ends
                    raise Closed(_OURS, "the interpreter is ending") from error
                self._loop, self._thread = loop, thread
            return self._loop


async def _marking_end(work: Coroutine[Any, Any, T], done: Future[None]) -> T:
    # A cancelled concurrent future counts as done at once; this one when the clean-up really is.
    try:
        return await work
    finally:
        done.set_result(None)


portal = Portal()
