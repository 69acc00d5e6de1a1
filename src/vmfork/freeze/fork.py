"""Forks of a running machine: machines that go on where it was at one moment, while it runs on."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.adopt.hooks import AFTER_FORK, BEFORE_FREEZE, describe_fork, find_hooks, run_hooks
from vmfork.adopt.thaw import WATCHERS
from vmfork.adopt.todo import Thaw
from vmfork.config import Limits
from vmfork.errors import ConfigError
from vmfork.freeze.live import check_copyable, find_unset, take_moment
from vmfork.journal import about
from vmfork.machine.again import made_again
from vmfork.machine.emulator import find_maker
from vmfork.machine.folder import find_ticket
from vmfork.machine.growth import plan_growth
from vmfork.machine.launch import Frozen, restore_base
from vmfork.machine.naming import check_vm_name
from vmfork.machine.room import check_room
from vmfork.machine.several import Failures, make_several
from vmfork.wire.frame import FIRST_WITH_NOTIFY

if TYPE_CHECKING:
    from vmfork.config import Instance
    from vmfork.freeze.live import Moment
    from vmfork.hypervisor.qemu import QemuBinary
    from vmfork.machine.base import Adopted
    from vmfork.machine.facts import Make
    from vmfork.machine.request import LiveFork
    from vmfork.machine.running import Running
    from vmfork.wire.message import Kept

_log = logging.getLogger("vmfork")

# Each is a process of the host's; more would be refused for want of memory long before.
MOST_FORKS = 1000


async def fork_running(
    running: Running, wanted: LiveFork, *, instance: Instance, failures: Failures | None = None
) -> list[Adopted]:
    """Machines of their own, each confirmed by its guest, and the caller's now. The machine runs on as it was.

    One that stands still is forked as it stands; its forks run. Raises `ConfigError` for what cannot be asked, and
    `NoRoom` and `HostError` when the host has no room, before the machine was paused. Raises what `copy_into`, adopting
    and `make_several` raise; no fork is left then. With `failures` those of single forks are put there.
    """
    make = check_copyable(running)
    limits = _check(running, wanted)
    binary = await find_maker(make, places=instance.places)
    check_room(running.folder.path.parent, running.hardware, limits, wanted.count)
    thaw = await _prepare(running, make, wanted)
    with ExitStack() as opened:
        moment = await take_moment(running, opened)
        _log.info(
            "VM %s was forked, and stood still for %.1f ms",
            running.id,
            moment.copied.pause_s * 1e3,
            extra=about("machine.branched", vm_id=running.id, took_s=round(moment.copied.pause_s, 6)),
        )
        frozen = _Source(running, moment, make, thaw, limits)

        async def make_one() -> Adopted:
            return await made_again(lambda: frozen.make(binary, wanted, instance), accel=running.hardware.accel)

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
    if request.grows:
        plan_growth(running.hardware, cpus=request.cpus, memory_mib=request.memory_mib, whose=f"VM {running.id}")
    ticket = find_ticket(running.folder.path)
    # Whoever waits for room waits before the pause, or not at all.
    return Limits(wait_s=0) if ticket is None else replace(ticket.limits, wait_s=0)


async def _prepare(running: Running, make: Make, wanted: LiveFork) -> Thaw:
    """What each fork has to do, found in the machine before it is forked; hooks that are asked for ran in it."""
    # Which programs watch is known in the fork alone: one may have begun in the moment before.
    watchers = (WATCHERS,) if make.agent_protocol >= FIRST_WITH_NOTIFY else ()
    unset = find_unset(running)
    kept: dict[Kept, bool] = {"programs": wanted.programs == "keep", "asks": wanted.asks}
    keeps = tuple(each for each, is_kept in kept.items() if is_kept and make.keeps_programs)
    if not wanted.hooks:
        return Thaw(watchers=watchers, greets=True, keeps=keeps, unset=unset)
    agent = running.agent
    before = await find_hooks(agent, BEFORE_FREEZE)
    await run_hooks(agent, before, describe_fork(running.facts.identity), limit_s=wanted.hook_timeout_s)
    return Thaw(watchers=watchers, hooks=await find_hooks(agent, AFTER_FORK), greets=True, keeps=keeps, unset=unset)


@dataclass(frozen=True, slots=True)
class _Source:
    """What the forks of one moment are made from."""

    parent: Running
    moment: Moment
    made: Make
    thaw: Thaw
    limits: Limits

    async def make(self, binary: QemuBinary, wanted: LiveFork, instance: Instance) -> Adopted:
        parent, layers = self.parent, self.moment.layers
        with self.moment.open_state() as state_fd:
            frozen = Frozen(
                template=parent.template,
                image=parent.facts.image,
                hardware=parent.hardware,
                memory_fd=layers[0],
                upper_fd=layers[1] if len(layers) > 1 else None,
                state_fd=state_fd,
                thaw=self.thaw,
                reseed=parent.facts.identity.reseed,
                limits=self.limits,
                make=self.made,
                descent=parent.facts.descent.below_vm(parent.id),
            )
            base = await restore_base(frozen, binary=binary, instance=instance)
        return await base.adopt(
            wanted.request,
            timeout_s=wanted.timeout_s,
            hook_timeout_s=wanted.hook_timeout_s,
            standing=wanted.standing,
        )


async def _close(adopted: Adopted) -> None:
    """The fork is gone, one that would have outlived us too."""
    running = adopted.running
    if running.is_shared:
        running.machine.identity.kill()
    await running.aclose()
