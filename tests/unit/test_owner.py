"""A call that gives an owner: awaited or entered, a task or run, and always closed when its block says so."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import warnings

import pytest

from vmfork.errors import WrongContext
from vmfork.owner import Opening, Owner, gives_owner


class Machine(Owner):
    """Something to own."""

    def __init__(self) -> None:
        self.is_open = True

    async def aclose(self) -> None:
        self.is_open = False


class Maker:
    """What gives one."""

    error: Exception | None = None

    @gives_owner
    async def make(self, *, wait_s: float = 0.0) -> Machine:
        """A machine."""
        await asyncio.sleep(wait_s)
        if self.error is not None:
            raise self.error
        return Machine()

    @classmethod
    @gives_owner
    async def boot(cls) -> Machine:
        """Another."""
        return Machine()


@pytest.mark.parametrize("attempt", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_owner_that_is_pickled_or_copied_says_what_to_do_instead(attempt) -> None:
    with pytest.raises(WrongContext, match="cannot be pickled or copied") as told:
        attempt(Machine())
    assert "vm.detach() gives a handle" in told.value.hint


async def test_it_can_be_awaited_and_the_caller_closes_it() -> None:
    async with await Maker().make() as machine:
        assert machine.is_open
    assert not machine.is_open
    assert (await Maker.boot()).is_open


async def test_entered_it_gives_the_same_and_its_block_closes_it() -> None:
    for call in (Maker().make(), Maker.boot()):
        async with call as machine:
            assert machine.is_open
        assert not machine.is_open
    with pytest.raises(KeyError):
        async with Maker().make() as machine:
            raise KeyError
    assert not machine.is_open


async def test_an_error_of_the_call_is_raised_where_it_is_entered() -> None:
    maker = Maker()
    maker.error = OSError("no room")
    with pytest.raises(OSError, match="no room"):
        async with maker.make():
            pytest.fail("it was not made")


async def test_it_may_be_a_task_and_be_cancelled() -> None:
    assert (await asyncio.create_task(Maker().make())).is_open
    assert all(machine.is_open for machine in await asyncio.gather(Maker().make(), Maker.boot()))
    task = asyncio.create_task(Maker().make(wait_s=60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), Maker().make(wait_s=60):
            pytest.fail("it was not made")


def test_it_may_be_run() -> None:
    assert asyncio.run(Maker().make()).is_open


def test_one_that_nobody_awaits_is_told_as_any_coroutine_is() -> None:
    gc.collect()  # what other tests left is not told here
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call = Maker().make()
        assert isinstance(call, Opening)
        del call
        gc.collect()
    assert [str(warning.message) for warning in caught] == ["coroutine 'Maker.make' was never awaited"]
