"""A machine whose programs may fork it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.freeze.inside import Family, Inside, Terms
from vmfork.freeze.live import check_asking

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.config import Instance
    from vmfork.machine.base import Adopted
    from vmfork.machine.running import Running
    from vmfork.owner import Owner


async def allow_forks(
    running: Running,
    most: int,
    *,
    instance: Instance,
    timeout_s: float,
    make_vm: Callable[[Adopted], Owner],
) -> None:
    """Programs of the machine may fork it; `make_vm` makes of each fork what its owner has of it.

    So many machines may live beside it. They reach what it may, and live no longer. Raises `ConfigError` when the
    machine's agent is too old for it, and `GuestError`; the machine is still the caller's.
    """
    check_asking(running.facts.make)
    await Inside(running, Family(Terms(most=most, instance=instance, timeout_s=timeout_s), make_vm=make_vm)).begin()
