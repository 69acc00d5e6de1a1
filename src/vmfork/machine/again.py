"""A machine that died of a fault of QEMU's emulation, and not of its guest's own, is made once more.

TCG before QEMU 8.1 reads code that another CPU is changing, and may keep the half-changed form: a kernel that patches
itself as it boots with several CPUs then meets an int3 that is there no more ("Oops: int3"). An instruction that faults
may leave senseless flags. Each was seen once in some thousand machines (QEMU 7.2.22), as was a kernel that died in
`text_poke_early`, before it had other tasks. With several CPUs TCG may also look an address up in a memory map that the
firmware has just replaced, and QEMU ends itself by an assertion (QEMU's issue 1921; seen once with 10.0.13). The guest
ran nothing of its user's by then.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from vmfork.errors import LaunchError
from vmfork.journal import about

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

_log = logging.getLogger("vmfork")

# How a kernel ends that meets what cannot be: in an interrupt, or before it has other tasks. What it says when it lacks
# memory, or its init, differs.
_DIED = ("the guest panicked: Fatal exception", "the guest panicked: Attempted to kill the idle task")
# What QEMU says last when it looked up what is not in its memory map.
_ABORTED = "iotlb_to_section: Assertion"


async def made_again(make: Callable[[], Awaitable[T]], *, accel: str) -> T:
    """What `make` gives. Under TCG it is called a second time when the machine died as it does of such a fault.

    Raises what `make` raises otherwise, and what it raises the second time.
    """
    try:
        return await make()
    except LaunchError as error:
        if accel != "tcg" or not (error.reason.startswith(_DIED) or _ABORTED in error.log_tail):
            raise
        _log.warning("a machine is made again: %s", error.reason, extra=about("machine.again", error=error.code))
        return await make()
