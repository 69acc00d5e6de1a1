"""What an object is bound to: the process, and the event loop, that made it."""

from __future__ import annotations

import asyncio
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vmfork.errors import WrongContext

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType


# Set by the blocking API, whose callers are not on the stack of its loop; asyncio passes it on to what they ask for.
called_from: ContextVar[str] = ContextVar("vmfork_called_from", default="")

# Frames of these packages stand between a caller and us.
_BETWEEN = ("vmfork", "asyncio", "concurrent", "contextlib", "threading")


def find_caller() -> str:
    """File and line of the nearest frame that is neither ours nor asyncio's: where a program asked for something."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - what warnings and logging use as well
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "an unknown place"


class Bound:
    """The process and the running event loop of the moment it was made, and the place in the program (`made_at`).

    Futures, readers and sockets serve one loop. Used from another they would never wake anybody: whatever is bound says
    so at once instead of waiting for ever.
    """

    __slots__ = ("_loop", "_pid", "_what", "made_at")

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self.made_at = called_from.get() or find_caller()

    @property
    def is_forked(self) -> bool:
        """We are a child that os.fork(2) made of the process it is bound to. What it stands for is the parent's."""
        return os.getpid() != self._pid

    @property
    def is_stranded(self) -> bool:
        """Its event loop was closed, so that nothing of it can be awaited any more."""
        return self._loop.is_closed()

    @property
    def is_here(self) -> bool:
        """We are in the process that made it, on the event loop that made it."""
        return not self.is_forked and _running_loop() is self._loop

    async def run_there(self, work: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Whether `work` was done on the loop it is bound to, which is not the one that runs here."""
        if not self._loop.is_running():
            return False
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), self._loop))
        return True

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def check(self) -> None:
        """Raises `WrongContext`, naming the mistake, when this is another process or another event loop."""
        self.check_process()
        if _running_loop() is not self._loop:
            ended = " that has ended" if self.is_stranded else ""
            raise WrongContext(
                self._what,
                f"belongs to another event loop{ended}",
                hint="make and use it in one asyncio.run (pytest-asyncio gives each test a loop of its own), "
                "or use the blocking API, which has one loop for all",
            )

    def check_process(self) -> None:
        """Raises `WrongContext` when this is a child that was forked from the process it is bound to."""
        if self.is_forked:
            raise WrongContext(
                self._what,
                f"was made in process {self._pid}, and this is a child that was forked from it",
                hint="make it in the process that uses it; a machine can be handed over: vm.detach(), VM.attach()",
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
