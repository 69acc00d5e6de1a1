"""The disk that a guest writes to is copied as it is at one moment, while its machine stands still or runs.

QEMU's own backup does it (`blockdev-backup`): whatever the guest writes after it was begun is written once the old
content is in the copy. It begins in the pause, so slowly that hardly anything is copied there: 1 MiB at most, whatever
is on the disk (decision 66). Whoever waits for its end has it go on as fast as it can.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmfork.errors import HostError, VMForkError
from vmfork.hypervisor.qemu.command import SCRATCH

if TYPE_CHECKING:
    from vmfork.hypervisor.qemu.monitor import Monitor

# The name of the job, and of the file that it writes.
COPY = "scratch-copy"
_CHANGED = "JOB_STATUS_CHANGE"
_DONE = "concluded"
# Of a job that is further a speed cannot be set (QEMU 7.2, job.c, JobVerbTable), and need not.
_COPIES = ("created", "running", "paused")
# Of a connection that is lost no event comes; whoever asks then is told.
_LOOK_EVERY_S = 1.0
_COMMAND = "blockdev-backup"
# A byte a second: what QEMU copies before the machine goes on would be in its pause.
_ARGUMENTS = {
    "job-id": COPY,
    "device": SCRATCH,
    "target": COPY,
    "sync": "full",
    "speed": 1,
    "auto-dismiss": False,
}
# How the job is begun, in one line for whoever has stopped the machine.
BEGIN = json.dumps({"execute": _COMMAND, "arguments": _ARGUMENTS})


async def open_target(monitor: Monitor, fd: int) -> None:
    """QEMU can write a copy into the file open as `fd`, an empty qcow2. What was left of another is gone."""
    await drop(monitor)
    async with monitor.lend(fd) as name:
        unsafe = {"no-flush": True}
        file = {"driver": "file", "filename": name, "locking": "off", "cache": unsafe, "discard": "unmap"}
        await monitor.execute(
            "blockdev-add",
            **{"driver": "qcow2", "node-name": COPY, "file": file, "cache": unsafe, "discard": "unmap"},
        )


async def begin(monitor: Monitor) -> None:
    """The copy is of this moment. Its target is open."""
    await monitor.execute(_COMMAND, **_ARGUMENTS)


async def finish(monitor: Monitor) -> None:
    """All of the copy is in its file, and QEMU has let go of that. Raises `HostError` where it could not be written."""
    await _hurry(monitor)
    job = await _wait_done(monitor)
    if job is None:
        raise HostError("the disk of the machine was not copied: nobody began it")
    await drop(monitor)
    if (reason := job.get("error")) is not None:
        raise HostError(
            f"the disk of the machine could not be copied: {reason}",
            hint="the machine runs on as it was; free space where vmfork keeps images (VMFORK_HOME)",
        )


async def drop(monitor: Monitor) -> None:
    """Nothing of a copy is left, complete or not."""
    if await _find_job(monitor) is not None:
        with suppress(VMForkError):  # it may have ended meanwhile
            await monitor.execute("job-cancel", id=COPY)
        await _wait_done(monitor)
        await monitor.execute("job-dismiss", id=COPY)
    nodes = {node["node-name"] for node in await monitor.execute("query-named-block-nodes", flat=True)}
    if COPY in nodes:
        await monitor.execute("blockdev-del", **{"node-name": COPY})


async def _hurry(monitor: Monitor) -> None:
    """The copy is no longer slowed down. Raises `HostError` where it is."""
    try:
        await monitor.execute("block-job-set-speed", device=COPY, speed=0)
    except HostError:
        job = await _find_job(monitor)
        if job is not None and job["status"] in _COPIES:
            raise


async def _find_job(monitor: Monitor) -> dict[str, Any] | None:
    return next((job for job in await monitor.execute("query-jobs") if job["id"] == COPY), None)


async def _wait_done(monitor: Monitor) -> dict[str, Any] | None:
    """The job, which has ended; `None` where there is none."""
    while True:
        with monitor.listen(_CHANGED) as events:
            job = await _find_job(monitor)
            if job is None or job["status"] == _DONE:
                return job
            with suppress(TimeoutError):
                await asyncio.wait_for(anext(events), _LOOK_EVERY_S)
