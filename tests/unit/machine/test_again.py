"""A machine whose guest died of the emulator's fault is made once more, and no other."""

from __future__ import annotations

import pytest

from vmfork.errors import LaunchError
from vmfork.machine.again import made_again

DIED = "the guest panicked: Fatal exception in interrupt (the machine's agent is gone)"
ITS_OWN = "the guest panicked: Attempted to kill init! exitcode=0x00000009 (the machine's agent is gone)"


class Maker:
    def __init__(self, *reasons: str) -> None:
        self.reasons = list(reasons)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.reasons:
            raise LaunchError(self.reasons.pop(0))
        return "made"


async def test_under_emulation_it_is_made_again_and_told(caplog) -> None:
    make = Maker(DIED)
    assert await made_again(make, accel="tcg") == "made"
    assert make.calls == 2
    assert [record.event for record in caplog.records] == ["machine.again"]


@pytest.mark.parametrize(
    ("reasons", "accel", "calls"), [([DIED, DIED], "tcg", 2), ([DIED], "kvm", 1), ([ITS_OWN], "tcg", 1)]
)
async def test_a_second_time_another_accelerator_and_another_death_are_errors(reasons, accel, calls) -> None:
    make = Maker(*reasons)
    with pytest.raises(LaunchError, match="panicked"):
        await made_again(make, accel=accel)
    assert make.calls == calls
