"""A guest whose boot does not go on: QEMU stopped it, or it neither prints nor touches memory."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from vmfork.host.memory import read_resident
from vmfork.host.process import read_starved_s
from vmfork.machine.ending import launch_error

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vmfork.hypervisor.base import Machine
    from vmfork.wire.message import Hello

# A guest may stand still at least this long. Where KVM cannot run it, the boot ends after this and 0.3 s of firmware.
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
            raise launch_error(machine, f"the guest stood still for {stalled.result():.3g} s")
        return await greeting
    finally:
        futures = (greeting, stopped, stalled)
        for future in futures:
            future.cancel()
        await asyncio.gather(*futures, return_exceptions=True)


async def wait_stalled(machine: Machine, limit_s: float) -> float:
    """The guest made no progress for `limit_s` seconds, or for as long as it had gone on before, if that is longer.

    So a boot that was slow all along may rest longer than one that was quick. Time in which QEMU was ready to run and
    the host had no CPU for it does not count. Returns the limit that held. Progress is looked for five times a second,
    because no event tells that a page was touched.
    """
    pid, begun = machine.identity.pid, time.monotonic()
    written, touched, still_s, starved = -1, 0, 0.0, read_starved_s(pid)
    looked = moved = begun
    while still_s < (limit := max(limit_s, moved - begun)):
        await asyncio.sleep(_LOOK_EVERY_S)
        now, now_starved = time.monotonic(), read_starved_s(pid)
        still_s += max(0.0, now - looked - (now_starved - starved))
        looked, starved = now, now_starved
        now_written, now_touched = machine.console_bytes, read_resident(pid)
        if now_written != written or now_touched >= touched + _TOUCHED_BYTES:
            written, touched, still_s, moved = now_written, now_touched, 0.0, now
    return limit
