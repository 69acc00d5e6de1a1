"""Several in one call: all of them or none, or those that could be had."""

from __future__ import annotations

import asyncio
import os
from itertools import count

import pytest

from vmfork.errors import HostError
from vmfork.machine.several import count_at_once, make_several


class Maker:
    """Gives numbers from 0 on; those in `failing` are errors. What was closed is in `closed`."""

    def __init__(self, *failing: int, error: type[Exception] = HostError) -> None:
        self.closed: list[int] = []
        self._failing, self._error, self._numbers = failing, error, count()

    async def make(self) -> int:
        number = next(self._numbers)
        await asyncio.sleep(0)
        if number in self._failing:
            raise self._error(f"number {number}")
        return number

    async def close(self, number: int) -> None:
        self.closed.append(number)


async def test_all_are_given_and_none_is_closed() -> None:
    maker = Maker()
    assert sorted(await make_several(20, maker.make, close=maker.close, failures=None)) == list(range(20))
    assert maker.closed == []


async def test_when_some_fail_all_are_closed_and_the_first_error_has_the_others() -> None:
    maker = Maker(1, 3)
    with pytest.raises(HostError) as raised:
        await make_several(4, maker.make, close=maker.close, failures=None)
    assert [str(raised.value), *map(str, raised.value.siblings)] == ["number 1", "number 3"]
    assert sorted(maker.closed) == [0, 2]


async def test_once_one_has_failed_no_more_are_begun() -> None:
    maker = Maker(*range(count_at_once()))
    with pytest.raises(HostError) as raised:
        await make_several(100, maker.make, close=maker.close, failures=None)
    assert len(raised.value.siblings) == count_at_once() - 1


@pytest.mark.parametrize(("cpus", "at_once"), [(1, 4), (2, 8), (64, 8)])
def test_fewer_are_made_at_once_where_few_cpus_are(monkeypatch, cpus, at_once) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    assert count_at_once() == at_once


async def test_partly_those_that_could_be_had_are_given_and_the_errors_told() -> None:
    maker, failures = Maker(0, 2), []
    assert sorted(await make_several(12, maker.make, close=maker.close, failures=failures)) == [1, *range(3, 12)]
    assert [str(error) for error in failures] == ["number 0", "number 2"]
    assert maker.closed == []


async def test_an_error_that_is_not_ours_closes_all_and_is_raised_as_it_is() -> None:
    maker = Maker(1, error=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        await make_several(2, maker.make, close=maker.close, failures=[])
    assert maker.closed == [0]


async def test_when_it_is_cancelled_all_are_closed() -> None:
    maker, made = Maker(), asyncio.Event()

    async def make() -> int:
        number = await maker.make()
        if number:
            await asyncio.Event().wait()
        made.set()
        return number

    task = asyncio.create_task(make_several(2, make, close=maker.close, failures=None))
    await made.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert maker.closed == [0]
