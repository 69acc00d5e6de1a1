"""A guest whose boot does not go on: QEMU stopped it, or it neither prints nor touches memory."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from vmfork.host.memory import read_resident
from vmfork.machine.ending import launch_error

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vmfork.hypervisor.base import Machine
    from vmfork.wire.message import Hello

# A guest may stand still this long. Where KVM cannot run it, the boot ends after this and the firmware's 0.3 s.
STALL_LIMIT_S = 5.0
_LOOK_EVERY_S = 0.2
# QEMU's own threads touch a page now and then while the guest stands still.
_TOUCHED_BYTES = 64 * 1024


async def unless_stuck(hello: Coroutine[Any, Any, Hello], machine: Machine) -> Hello:
    """The agent's greeting. Raises `LaunchError` when QEMU stops the guest, or the guest stands still, before it."""
    greeting = asyncio.ensure_future(hello)
    stopped = asyncio.ensure_future(machine.wait_stopped())
    stalled = asyncio.ensure_future(wait_stalled(machine, STALL_LIMIT_S))
    try:
        await asyncio.wait({greeting, stopped, stalled}, return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() and stopped.exception() is not None:
            # A monitor that was lost knows less than the agent's line.
            await asyncio.wait({greeting, stalled}, return_when=asyncio.FIRST_COMPLETED)
        elif stopped.done() and not greeting.done():
            raise launch_error(machine, f"QEMU stopped the guest ({stopped.result()})")
        if stalled.done() and not greeting.done():
            raise launch_error(machine, f"the guest stood still for {STALL_LIMIT_S:g} s")
        return await greeting
    finally:
        futures = (greeting, stopped, stalled)
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)


async def wait_stalled(machine: Machine, limit_s: float) -> None:
    """The guest made no progress for `limit_s` seconds. Waits as long as it makes some.

    Progress is looked for five times a second, because no event tells that a page was touched.
    """
    written, touched, since = -1, 0, time.monotonic()
    while time.monotonic() - since < limit_s:
        now_written, now_touched = machine.console_bytes, read_resident(machine.identity.pid)
        if now_written != written or now_touched >= touched + _TOUCHED_BYTES:
            written, touched, since = now_written, now_touched, time.monotonic()
        await asyncio.sleep(_LOOK_EVERY_S)
