"""An owner that nobody refers to any more: it is closed, and a warning names it, as for files and subprocesses."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.host.bound import Bound


def close_dropped(owner: object, bound: Bound, end: Callable[[], None]) -> None:
    """The owner, in its finalizer, is closed or about to be. A `ResourceWarning` says where it was made.

    `end` closes it without waiting: on its event loop where that runs, whatever thread the collector works in; else
    here. Nothing is done in a forked child, which does not own it, and at the end of the interpreter, which ends it
    anyway.
    """
    name = repr(owner)
    if sys.is_finalizing() or bound.is_forked:
        return
    # A task would be lost with a loop that is about to end, and leave zombies: most owners are dropped just then. A
    # callback is run by the loop's last turns, and blocks it while the kernel takes the machine down.
    if bound.loop.is_running():
        bound.loop.call_soon_threadsafe(end)
    else:
        end()
    # Last, because a filter may turn a warning into an error.
    warnings.warn(f"unclosed {name}, made at {bound.made_at}", ResourceWarning, source=owner, stacklevel=2)
