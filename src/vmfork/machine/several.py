"""Several machines in one call: all of them, or none; or those that could be had, and why not the others."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeVar

from vmfork.errors import VMForkError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

# Made at once: more only wait for the same cores, and their guests answer too late for their clocks to be proven.
_MOST = 8
_FOR_EACH_CPU = 4

# What went wrong with single ones, in the order in which it did.
Failures = list[VMForkError]


def count_at_once() -> int:
    """How many machines are made at once on this host's CPUs."""
    return min(_MOST, _FOR_EACH_CPU * len(os.sched_getaffinity(0)))


async def make_several(
    count: int,
    make: Callable[[], Awaitable[T]],
    *,
    close: Callable[[T], Awaitable[None]],
    failures: Failures | None,
    at_once: int | None = None,
) -> list[T]:
    """`count` of what `make` gives, made several at a time. The caller owns them.

    Without `at_once` that is as many as suit this host's CPUs.
    When one fails, all others are closed, and its error is raised, with those of others in `siblings`. With `failures`
    errors of vmfork's own are put there instead, and fewer are given. On cancel, and after any other error, all are
    closed.
    """
    slots, told = asyncio.Semaphore(at_once or count_at_once()), Failures() if failures is None else failures
    made: list[T] = []
    async with AsyncExitStack() as on_failure:

        async def make_one() -> None:
            async with slots:
                if told and failures is None:
                    return  # one has failed: no more are begun
                try:
                    one = await make()
                except VMForkError as error:
                    told.append(error)
                    return
                on_failure.push_async_callback(close, one)
                made.append(one)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(make_one())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        if told and failures is None:
            first, *others = told
            first.siblings = tuple(others)
            raise first
        on_failure.pop_all()
    return made
