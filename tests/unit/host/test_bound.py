"""An object used from another process or event loop says so at once, and says which mistake it was."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.children import exit_code_of, fork_child
from vmfork.errors import WrongContext
from vmfork.host.bound import Bound


async def test_where_it_was_made_it_may_be_used() -> None:
    bound = Bound("the machine")
    bound.check()
    assert (bound.is_here, bound.is_forked, bound.is_stranded) == (True, False, False)


def test_another_event_loop_is_named() -> None:
    async def make() -> Bound:
        return Bound("the machine")

    async def use(bound: Bound) -> None:
        bound.check()

    bound = asyncio.run(make())
    assert (bound.is_here, bound.is_stranded) == (False, True)
    with pytest.raises(WrongContext, match="the machine belongs to another event loop that has ended") as wrong:
        asyncio.run(use(bound))
    assert "asyncio.run" in wrong.value.hint


async def test_a_thread_without_a_loop_is_elsewhere() -> None:
    bound = Bound("the machine")
    with pytest.raises(WrongContext, match=r"belongs to another event loop(\n|$)"):
        await asyncio.to_thread(bound.check)
    await asyncio.to_thread(bound.check_process)  # what needs no loop may be asked from there


async def test_a_forked_child_is_named() -> None:
    bound = Bound("the machine")
    reading, writing = os.pipe()

    def use() -> None:
        try:
            bound.check()
        except WrongContext as error:
            os.write(writing, f"{bound.is_forked} {error} {error.hint}".encode())

    assert exit_code_of(fork_child(use)) == 0
    told = os.read(reading, 4096).decode()
    os.close(reading)
    os.close(writing)
    assert told.startswith(f"True the machine was made in process {os.getpid()}, and this is a child")
    assert "VM.attach" in told
