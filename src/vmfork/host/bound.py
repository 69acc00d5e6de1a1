"""What an object is bound to: the process, and the event loop, that made it."""

from __future__ import annotations

import asyncio
import os

from vmfork.errors import WrongContext


class Bound:
    """The process and the running event loop of the moment it was made.

    Futures, readers and sockets serve one loop. Used from another they would never wake anybody: whatever is bound says
    so at once instead of waiting for ever.
    """

    __slots__ = ("_loop", "_pid", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()

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
        """This process, and the event loop that runs in this thread."""
        return not self.is_forked and _running_loop() is self._loop

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def check(self) -> None:
        """Raises `WrongContext`, naming the mistake, when this is another process or another event loop."""
        if self.is_forked:
            raise WrongContext(
                self._what,
                f"was made in process {self._pid}, and this is a child that was forked from it",
                hint="make it in the process that uses it; a machine can be handed over: vm.detach(), VM.attach()",
            )
        if _running_loop() is not self._loop:
            ended = " that has ended" if self.is_stranded else ""
            raise WrongContext(
                self._what,
                f"belongs to another event loop{ended}",
                hint="make and use it in one asyncio.run (pytest-asyncio gives each test a loop of its own), "
                "or use the blocking API, which has one loop for all",
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
