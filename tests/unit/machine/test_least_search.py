"""The search for the least memory, without machines: it finds the boundary in few boots wherever it lies."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfork.config.values import MIN_MEMORY_MIB
from vmfork.errors import LaunchError
from vmfork.machine.least import find_least


class Boots:
    """A guest that boots from `least` MiB on, and the sizes that were tried."""

    def __init__(self, least: float) -> None:
        self.least = least
        self.tried: list[int] = []

    async def __call__(self, memory_mib: int) -> LaunchError | None:
        self.tried.append(memory_mib)
        return None if memory_mib >= self.least else LaunchError(f"{memory_mib} is too little")


@settings(deadline=None)  # a busy machine is no failure
@given(floor=st.integers(64, 3000), above=st.integers(1, 400))
async def test_the_least_is_found_to_4_mib(floor, above) -> None:
    boots = Boots(floor + above)
    found = await find_least(boots, floor_mib=floor)
    assert found % 4 == 0
    assert floor + above <= found < floor + above + 4
    assert len(boots.tried) == len(set(boots.tried)) <= 14
    assert min(boots.tried) > floor - 4


@settings(deadline=None)
@given(floor=st.integers(0, 63), least=st.integers(0, 150))
async def test_no_size_is_tried_that_no_machine_can_have(floor, least) -> None:
    """A container image of one program boots in less."""
    boots = Boots(least)
    assert max(least, MIN_MEMORY_MIB) <= await find_least(boots, floor_mib=floor) < max(least, MIN_MEMORY_MIB) + 4
    assert min(boots.tried) >= MIN_MEMORY_MIB


async def test_a_right_guess_takes_two_boots() -> None:
    boots = Boots(142 + 80)
    assert await find_least(boots, floor_mib=142) == 224
    assert boots.tried == [224, 220]


async def test_a_guest_that_never_boots_is_told_as_it_failed() -> None:
    boots = Boots(float("inf"))
    with pytest.raises(LaunchError, match="is too little"):
        await find_least(boots, floor_mib=142)
    assert max(boots.tried) < 16 * 224
