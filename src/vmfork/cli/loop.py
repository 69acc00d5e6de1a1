"""Runs a command's coroutine. A signal cancels it, so that it closes what it owns; then the signal is reported."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the command; everything it owned is closed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_status(self) -> int:
        return 128 + self.number


def run_async(work: Coroutine[Any, Any, T], *, on_first: Callable[[], None] | None = None) -> T:
    """The result of `work`. Raises `Interrupted` when SIGINT, SIGTERM or SIGHUP came first.

    The first signal cancels `work`; later ones change nothing. With `on_first`, the first signal calls that, which is
    to end `work` in order, and the second cancels. A signal that was ignored stays ignored: nohup(1) and a shell's
    background jobs count on it.
    """
    import asyncio  # noqa: PLC0415 - a help text needs none of it

    came: list[int] = []
    warned = on_first is None
    before = {number: signal.getsignal(number) for number in _STOPPING}

    async def guarded() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            nonlocal warned
            if not warned:
                assert on_first is not None
                warned = True
                on_first()
            elif not came:
                came.append(number)
                task.cancel()

        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                loop.add_signal_handler(number, stop, number)
        return await work

    try:
        result = asyncio.run(guarded())
    except BaseException:
        if came:
            raise Interrupted(came[0]) from None
        raise
    finally:
        for number, handler in before.items():  # closing the loop left Python's own, which raise
            signal.signal(number, handler)
    if came:
        raise Interrupted(came[0])
    return result
