"""How the end of a machine is told: to who waits for its guest, and to who waits for it to start."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from vmfork.errors import AdoptError, DeadlineExceeded, GuestError, LaunchError, MachineEnded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmfork.agent.client import AgentClient
    from vmfork.hypervisor.base import Watched

# Between the agent's connection closing and the process being reaped.
_EXIT_GRACE_S = 2.0
_KILLED = "it was killed, as the kernel does for lack of memory: look at dmesg and at the memory limits in force"


def watch_end(machine: Watched, agent: AgentClient) -> None:
    """When the machine ends, who waits for its agent is told how."""
    machine.on_exit(lambda _code: agent.fail(_machine_ended(machine)))
    agent.await_reason(_EXIT_GRACE_S)


@asynccontextmanager
async def explained(machine: Watched, agent: AgentClient, timeout_s: float) -> AsyncIterator[None]:
    """A failure inside the block says why: the process that ended, the guest that kept silent, the item it refused."""
    try:
        yield
    except DeadlineExceeded as error:
        raise _launch_error(
            machine,
            f"the guest did not answer within {timeout_s:g} s",
            hint="look at the console below, or give it more time (boot_timeout_s, fork_timeout_s)",
        ) from error
    except (GuestError, OSError) as error:
        if agent.lost is not None and await _has_ended(machine):
            raise _launch_error(machine, f"QEMU ended before the guest was ready ({error})") from error
        if isinstance(error, GuestError):
            error.console_tail = machine.console_tail()
            raise
        raise AdoptError("agent", str(error), console_tail=machine.console_tail()) from error


async def _has_ended(machine: Watched) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(machine.wait(), _EXIT_GRACE_S)
    return machine.has_ended


def _machine_ended(machine: Watched) -> MachineEnded:
    killed = machine.exit_code == -signal.SIGKILL
    return MachineEnded(
        machine.exit_code,
        log_tail=machine.log_tail(),
        console_tail=machine.console_tail(),
        hint=_KILLED if killed else "take another machine; its console tells what it did",
    )


def _launch_error(machine: Watched, reason: str, *, hint: str = "") -> LaunchError:
    if machine.exit_code == -signal.SIGKILL:
        hint = _KILLED
    return LaunchError(
        reason,
        argv=machine.argv,
        exit_code=machine.exit_code,
        log_tail=machine.log_tail(),
        console_tail=machine.console_tail(),
        hint=hint,
    )
