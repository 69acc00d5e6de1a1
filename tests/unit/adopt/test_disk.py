"""A disk that a machine was given: what the guest does not confirm of it ends the machine."""

from __future__ import annotations

import pytest

from vmfork.adopt.disk import set_up_disk
from vmfork.errors import AdoptError, DeadlineExceeded, GuestError
from vmfork.units import MIB
from vmfork.wire.message import DiskReading


class Guest:
    """Shows a disk of that size, or fails with `error`."""

    def __init__(self, size_bytes: int, error: Exception | None = None) -> None:
        self._size_bytes, self._error = size_bytes, error

    async def mount_disk(self, *, timeout_s: float) -> DiskReading:
        del timeout_s
        if self._error is not None:
            raise self._error
        return DiskReading("vda", self._size_bytes)


async def test_a_disk_of_the_size_that_was_asked_for_is_taken() -> None:
    await set_up_disk(Guest(64 * MIB), 64, timeout_s=1)


@pytest.mark.parametrize(
    ("guest", "said"),
    [
        (Guest(64 * MIB - 512), "'vda' with 64.0 MiB, not 64 MiB"),
        (Guest(0), "'vda' with 0 B, not 64 MiB"),
        (Guest(0, GuestError("no such disk", hint="look")), "no such disk"),
        (Guest(0, DeadlineExceeded("mounting", 1.0)), "did not answer within 1 s"),
    ],
)
async def test_what_is_not_confirmed_is_refused_by_name(guest, said) -> None:
    with pytest.raises(AdoptError) as refused:
        await set_up_disk(guest, 64, timeout_s=1)
    assert refused.value.item == "disk"
    assert said in str(refused.value)
