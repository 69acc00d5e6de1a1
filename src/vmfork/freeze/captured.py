"""A machine as it was at one moment, which runs on: what its forks are made from, and itself when it goes back."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.adopt.hooks import AFTER_FORK, BEFORE_FREEZE, describe_fork, find_hooks, run_hooks
from vmfork.adopt.thaw import WATCHERS
from vmfork.adopt.todo import Thaw
from vmfork.freeze.live import check_copyable, find_unset, take_moment
from vmfork.machine.launch import Frozen
from vmfork.machine.outlet import has_no_carrier
from vmfork.wire.frame import FIRST_WITH_NOTIFY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

    from vmfork.config import Limits
    from vmfork.freeze.live import Moment
    from vmfork.machine.facts import Descent, MachineFacts, Make
    from vmfork.machine.running import Running
    from vmfork.wire.message import Kept


@dataclass(frozen=True, slots=True)
class Captured:
    """The facts about the machine at that moment, what was copied of it, and what is left to do in whatever goes on.

    With `had_no_carrier` its card may have been without one.
    """

    facts: MachineFacts
    make: Make
    moment: Moment
    thaw: Thaw
    had_no_carrier: bool = False

    @contextmanager
    def open(self, *, limits: Limits, descent: Descent) -> Iterator[Frozen]:
        """What one machine is made from, which may have so much of the host and descends so."""
        facts, layers = self.facts, self.moment.layers
        with self.moment.open_state() as state_fd:
            yield Frozen(
                template=facts.identity.template,
                image=facts.image,
                hardware=facts.hardware,
                memory_fd=layers[0],
                upper_fd=layers[1] if len(layers) > 1 else None,
                is_live=True,
                state_fd=state_fd,
                thaw=self.thaw,
                reseed=facts.identity.reseed,
                limits=limits,
                make=self.make,
                descent=descent,
                scratch_fd=self.moment.scratch_fd,
                holds_user_network=facts.card is not None and facts.card.holds_user_network,
                had_no_carrier=self.had_no_carrier,
            )


async def capture(
    running: Running, opened: ExitStack, *, hooks: bool, keeps: Sequence[Kept] = (), hook_timeout_s: float
) -> Captured:
    """The machine as it was at one moment; it runs on. What is in it is open until `opened` is closed.

    With `hooks` those of before a freeze ran in it first, and those of after a fork run in whatever goes on. What
    is in `keeps` of its clients' goes on there. Raises `HookError`, and what `take_moment` raises.
    """
    make = check_copyable(running)
    kept = tuple(keeps) if make.keeps_programs else ()
    thaw = await _prepare(running, make, hooks=hooks, keeps=kept, hook_timeout_s=hook_timeout_s)
    moment = await take_moment(running, opened)
    # Looked at behind the moment: a passt that is there still was there in it.
    return Captured(running.facts, make, moment, thaw, had_no_carrier=has_no_carrier(running.facts))


async def _prepare(
    running: Running, make: Make, *, hooks: bool, keeps: tuple[Kept, ...], hook_timeout_s: float
) -> Thaw:
    """What is left to do, found in the machine before it is copied; hooks that are asked for ran in it."""
    # Which programs watch is known in the copy alone: one may have begun in the moment before.
    watchers = (WATCHERS,) if make.agent_protocol >= FIRST_WITH_NOTIFY else ()
    unset = find_unset(running)
    if not hooks:
        return Thaw(watchers=watchers, greets=True, keeps=keeps, unset=unset)
    agent = running.agent
    before = await find_hooks(agent, BEFORE_FREEZE)
    await run_hooks(agent, before, describe_fork(running.facts.identity), limit_s=hook_timeout_s)
    return Thaw(watchers=watchers, hooks=await find_hooks(agent, AFTER_FORK), greets=True, keeps=keeps, unset=unset)
