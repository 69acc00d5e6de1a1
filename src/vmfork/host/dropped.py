"""An owner that nobody refers to any more: it is closed, and a warning names it, as for files and subprocesses."""

from __future__ import annotations

import asyncio
import sys
import warnings
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.host.bound import Bound

_closing: set[asyncio.Task[None]] = set()


class Closable(Protocol):
    """What a dropped owner must be able to do."""

    async def aclose(self) -> None: ...


def close_dropped(owner: Closable, bound: Bound, end: Callable[[], None]) -> None:
    """The owner, in its finalizer, is closed or about to be. A `ResourceWarning` says where it was made.

    Where its event loop runs, the loop closes it, whatever thread the collector works in. Where the loop has stopped,
    `end` does, which needs none. Nothing is done in a forked child, which does not own it, and at the end of the
    interpreter, which ends it anyway.
    """
    name = repr(owner)
    if sys.is_finalizing() or bound.is_forked:
        return
    if bound.loop.is_running():
        bound.loop.call_soon_threadsafe(_begin_closing, owner)
    else:
        end()
    # Last, because a filter may turn a warning into an error.
    warnings.warn(f"unclosed {name}, made at {bound.made_at}", ResourceWarning, source=owner, stacklevel=2)


def _begin_closing(owner: Closable) -> None:
    task = asyncio.get_running_loop().create_task(owner.aclose())
    _closing.add(task)  # the loop itself holds tasks weakly
    task.add_done_callback(_closing.discard)
