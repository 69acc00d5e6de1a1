"""Work in several threads, whose results come in the order of what they were made of."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from threading import Event

A = TypeVar("A")
T = TypeVar("T")

# More than this do not compress faster than one process can read.
_MOST_LANES = 8


def count_lanes() -> int:
    """As many as there are processors for us, and as are of use."""
    return min(len(os.sched_getaffinity(0)), _MOST_LANES)


def in_order(work: Callable[[A], T], items: Iterable[A], *, stop: Event, lanes: int = 0) -> Iterator[T]:
    """What `work` makes of each item; so few are under way at once that memory holds them. None any more after `stop`.

    By default there are as many `lanes` as `count_lanes` says.
    """
    lanes = lanes or count_lanes()
    under_way: deque[Future[T]] = deque()
    with ThreadPoolExecutor(lanes, thread_name_prefix="vmfork-lane") as pool:
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) > lanes:
                    yield under_way.popleft().result()
                if stop.is_set():
                    return
            while under_way and not stop.is_set():
                yield under_way.popleft().result()
        finally:
            for each in under_way:
                each.cancel()
