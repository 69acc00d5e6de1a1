"""A machine that died of the emulator's fault is made once more, and no other."""

from __future__ import annotations

import pytest

from vmfork.errors import LaunchError
from vmfork.machine.again import made_again

DIED = LaunchError("the guest panicked: Fatal exception in interrupt (the machine's agent is gone)")
EARLY = LaunchError("the guest panicked: Attempted to kill the idle task! (the machine's agent is gone)")
ITS_OWN = LaunchError("the guest panicked: Attempted to kill init! exitcode=0x00000009 (the machine's agent is gone)")


def aborted(said: str) -> LaunchError:
    """QEMU ended itself by an assertion."""
    log = f"qemu-system-x86_64: system/physmem.c:2671: {said} failed.\n"
    return LaunchError(
        "QEMU ended before the guest was ready (the machine's agent is gone)", exit_code=-6, log_tail=log
    )


LOOK_UP = aborted("iotlb_to_section: Assertion `section_index < d->map.sections_nb'")
ANOTHER = aborted("flatview_read: Assertion `mr->ram'")


class Maker:
    def __init__(self, *errors: LaunchError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "made"


@pytest.mark.parametrize("error", [DIED, EARLY, LOOK_UP], ids=["guest", "early", "emulator"])
async def test_under_emulation_it_is_made_again_and_told(caplog, error) -> None:
    make = Maker(error)
    assert await made_again(make, accel="tcg") == "made"
    assert make.calls == 2
    assert [record.event for record in caplog.records] == ["machine.again"]


@pytest.mark.parametrize(
    ("errors", "accel", "calls"),
    [([DIED, DIED], "tcg", 2), ([DIED], "kvm", 1), ([ITS_OWN], "tcg", 1), ([LOOK_UP], "kvm", 1), ([ANOTHER], "tcg", 1)],
)
async def test_a_second_time_another_accelerator_and_another_death_are_errors(errors, accel, calls) -> None:
    make = Maker(*errors)
    with pytest.raises(LaunchError) as raised:
        await made_again(make, accel=accel)
    assert (raised.value, make.calls) == (errors[-1], calls)
