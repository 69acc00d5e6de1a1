"""A machine that was booted and is somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.machine.again import made_again
from vmfork.machine.launch import boot_base
from vmfork.store.ram_file import empty_ram

if TYPE_CHECKING:
    from vmfork.config import Instance
    from vmfork.machine.base import Adopted, Watch
    from vmfork.machine.plan import Plan
    from vmfork.machine.request import ForkRequest


async def boot_machine(
    plan: Plan,
    request: ForkRequest | None = None,
    *,
    instance: Instance,
    memory_fd: int | None = None,
    watch: Watch | None = None,
) -> Adopted:
    """It was booted as planned, and adopted. All is as `boot_base` has it.

    Raises what `boot_base` and `BaseVM.adopt` raise. Nothing is left then, in the file of its RAM neither.
    """

    async def make() -> Adopted:
        try:
            base = await boot_base(plan, instance=instance, memory_fd=memory_fd, watch=watch)
            return await base.adopt(request, timeout_s=plan.boot_timeout_s)
        except BaseException:
            if memory_fd is not None:
                empty_ram(memory_fd)
            raise

    return await made_again(make, accel=plan.hardware.accel)
