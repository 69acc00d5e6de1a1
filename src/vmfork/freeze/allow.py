"""A machine whose programs may fork it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.freeze.inside import Family, Inside, Terms
from vmfork.machine.request import ForkRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.config import Instance
    from vmfork.machine.base import Adopted
    from vmfork.machine.running import Running
    from vmfork.owner import Owner


async def allow_forks(
    running: Running,
    request: ForkRequest,
    *,
    instance: Instance,
    timeout_s: float,
    make_vm: Callable[[Adopted], Owner],
) -> None:
    """Programs of the machine may fork it, as `request` says; `make_vm` makes of each what its owner has of it.

    What they make reaches what the machine may, and lives no longer. Raises `ConfigError` when the machine's agent is
    too old for it, and `GuestError`; the machine is still the caller's.
    """
    make = running.facts.make
    if make is None or not make.answers_programs:
        reason = "the agent in this machine cannot ask for it"
        hint = "build the image and its templates again with this vmfork"
        raise ConfigError("allow_guest_fork", request.allow_guest_fork, reason, hint=hint)
    terms = Terms(
        most=request.allow_guest_fork,
        request=ForkRequest(network=request.network, idle_ttl_s=request.idle_ttl_s),
        ends_at=asyncio.get_running_loop().time() + request.ttl_s if request.ttl_s else None,
        instance=instance,
        timeout_s=timeout_s,
    )
    await Inside(running, Family(terms, make_vm=make_vm)).begin()
