"""Forks of a running machine: machines that go on where it was at one moment, while it runs on."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.config import Limits
from vmfork.errors import ConfigError
from vmfork.freeze.captured import capture
from vmfork.freeze.live import check_asking, check_copyable
from vmfork.host.passt import locate_passt
from vmfork.journal import about
from vmfork.machine.again import made_again
from vmfork.machine.card import check_copy, check_has_card
from vmfork.machine.disk import plan_disk
from vmfork.machine.emulator import find_maker
from vmfork.machine.folder import find_ticket
from vmfork.machine.growth import plan_growth
from vmfork.machine.launch import restore_base
from vmfork.machine.naming import check_vm_name
from vmfork.machine.request import MOST_FORKS
from vmfork.machine.room import check_room
from vmfork.machine.several import Failures, make_several

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.config import Instance
    from vmfork.machine.base import Adopted
    from vmfork.machine.request import LiveFork
    from vmfork.machine.running import Running
    from vmfork.wire.message import Kept

_log = logging.getLogger("vmfork")


async def fork_running(
    running: Running,
    wanted: LiveFork,
    *,
    instance: Instance,
    finish: Callable[[Running], Awaitable[None]] | None = None,
    failures: Failures | None = None,
) -> list[Adopted]:
    """Machines of their own, each confirmed by its guest, and the caller's now. The machine runs on as it was.

    What `finish` does is done to each; one that it cannot be done to has failed.

    One that stands still is forked as it stands; its forks run. Raises `ConfigError` for what cannot be asked, and
    `NoRoom` and `HostError` when the host has no room, before the machine was paused. Raises what `copy_into`, adopting
    and `make_several` raise; no fork is left then. With `failures` those of single forks are put there.
    """
    make = check_copyable(running)
    if wanted.request.allow_guest_fork:
        check_asking(make)
    limits = _check(running, wanted)
    disk_mib = plan_disk(wanted.request.disk_mib, running.hardware, make.agent_capabilities, whose=f"VM {running.id}")
    binary = await find_maker(make, places=instance.places)
    await check_room(running.folder.path.parent, running.hardware, limits, wanted.count)
    kept: dict[Kept, bool] = {"programs": wanted.programs == "keep", "asks": wanted.asks}
    with ExitStack() as opened:
        captured = await capture(
            running,
            opened,
            hooks=wanted.hooks,
            keeps=[each for each, is_kept in kept.items() if is_kept],
            hook_timeout_s=wanted.hook_timeout_s,
        )
        pause_s = captured.moment.copied.pause_s
        _log.info(
            "VM %s was forked, and stood still for %.1f ms",
            running.id,
            pause_s * 1e3,
            extra=about("machine.branched", vm_id=running.id, took_s=round(pause_s, 6)),
        )

        async def fork_one() -> Adopted:
            with captured.open(limits=limits, descent=running.facts.descent.below_vm(running.id)) as frozen:
                given = replace(frozen, card=wanted.request.card, disk_mib=disk_mib)
                base = await restore_base(given, binary=binary, instance=instance)
            adopted = await base.adopt(
                wanted.request,
                timeout_s=wanted.timeout_s,
                hook_timeout_s=wanted.hook_timeout_s,
                standing=wanted.standing,
            )
            if finish is not None:
                await _finish(adopted, finish)
            return adopted

        async def make_one() -> Adopted:
            return await made_again(fork_one, accel=running.hardware.accel)

        return await make_several(wanted.count, make_one, close=_close, failures=failures)


def _check(running: Running, wanted: LiveFork) -> Limits:
    """The limits that hold for the forks: those of the machine. Raises `ConfigError` and `VMExists`."""
    if not 1 <= wanted.count <= MOST_FORKS:
        raise ConfigError("count", wanted.count, f"a machine is forked 1 to {MOST_FORKS} times at once")
    standing, request = wanted.standing, wanted.request
    if standing is not None and standing.name:
        if wanted.count > 1:
            raise ConfigError("name", standing.name, f"{wanted.count} machines cannot have one name")
        check_vm_name(standing.name, running.folder.path.parent)
    check_has_card(request.card, running.hardware, whose=f"VM {running.id}")
    check_copy(request.card, running.facts.card, whose=f"VM {running.id}")
    if request.card == "passt":
        locate_passt()
    if request.grows:
        plan_growth(running.hardware, cpus=request.cpus, memory_mib=request.memory_mib, whose=f"VM {running.id}")
    ticket = find_ticket(running.folder.path)
    # Whoever waits for room waits before the pause, or not at all.
    return Limits(wait_s=0) if ticket is None else replace(ticket.limits, wait_s=0)


async def _finish(adopted: Adopted, finish: Callable[[Running], Awaitable[None]]) -> None:
    try:
        await finish(adopted.running)
    except BaseException:
        await _close(adopted)
        raise


async def _close(adopted: Adopted) -> None:
    """The fork is gone, one that would have outlived us too."""
    running = adopted.running
    if running.is_shared:
        running.machine.identity.kill()
    await running.aclose()
