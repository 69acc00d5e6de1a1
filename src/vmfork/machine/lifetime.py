"""A machine that one process owns ends by itself when its time is over: its owner's event loop sees to that."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.errors import MachineEnded

if TYPE_CHECKING:
    from vmfork.agent.client import AgentClient
    from vmfork.hypervisor.base import Machine

# As a broker says it of a machine that stands alone (broker/serve.c).
TTL_OVER, IDLE_OVER = "its time to live is over", "nobody used it for as long as it may be idle"


@dataclass(frozen=True, slots=True)
class Life:
    """When a machine ends by itself: at `ends_at` of the monotonic clock, or idle for `idle_ttl_s`; 0 is never."""

    ends_at: float = 0.0
    idle_ttl_s: float = 0.0

    @classmethod
    def begin(cls, *, ttl_s: float, idle_ttl_s: float) -> Life:
        """One that begins now."""
        return cls(time.monotonic() + ttl_s if ttl_s else 0.0, idle_ttl_s)

    def left_s(self) -> float:
        """What is left of it; 0 is no limit. Raises `MachineEnded` when it is over."""
        if not self.ends_at:
            return 0.0
        left_s = self.ends_at - time.monotonic()
        if left_s <= 0:
            raise _over(TTL_OVER, "ttl_s")
        return left_s


def limit_life(machine: Machine, agent: AgentClient, *, ttl_s: float, idle_ttl_s: float) -> None:
    """The machine ends after `ttl_s` seconds, and after `idle_ttl_s` without a request to its guest; 0 is never.

    Whoever uses it then, or later, gets `MachineEnded` with the reason. A machine that is given up before has what time
    its giver says.
    """
    if ttl_s:
        timer = asyncio.get_running_loop().call_later(ttl_s, _end, machine, agent, TTL_OVER, "ttl_s")
        agent.closed.add_done_callback(lambda _closed: timer.cancel())
    if idle_ttl_s:
        _watch_idleness(machine, agent, idle_ttl_s)


def _watch_idleness(machine: Machine, agent: AgentClient, idle_ttl_s: float) -> None:
    """It is looked at when it could have been idle for so long: a timer for each request would cost each request."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        left_s = idle_ttl_s - agent.idle_s
        if left_s > 0:
            timer = loop.call_later(left_s, look)
        else:
            _end(machine, agent, IDLE_OVER, "idle_ttl_s")

    timer = loop.call_later(idle_ttl_s, look)
    agent.closed.add_done_callback(lambda _closed: timer.cancel())


def _end(machine: Machine, agent: AgentClient, reason: str, limit: str) -> None:
    agent.fail(_over(reason, limit))
    machine.kill()


def _over(reason: str, limit: str) -> MachineEnded:
    return MachineEnded(None, reason=reason, hint=f"take another, with more time ({limit})")
