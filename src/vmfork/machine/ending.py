"""How the end of a machine is told: to who waits for its guest, and to who waits for it to start."""

from __future__ import annotations

import asyncio
import re
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
# mm/oom_kill.c: "System is deadlocked on memory", "Out of memory and no killable processes", and with
# panic_on_oom "Out of memory: ... panic_on_oom is enabled". A guest whose init is killed for memory says it of init.
_PANIC = re.compile(r"Kernel panic - not syncing: ([^\r\n]*)")
_MEMORY = "give it more memory (memory_mib)"
_KILLED = "it was killed, as the kernel does for lack of memory: look at dmesg and at the memory limits in force"


def watch_end(machine: Watched, agent: AgentClient) -> None:
    """When the machine ends, who waits for its agent is told how."""
    machine.on_exit(lambda _code: agent.fail(_machine_ended(machine)))
    agent.await_reason(_EXIT_GRACE_S)


@asynccontextmanager
async def explained(
    machine: Watched, agent: AgentClient, timeout_s: float, *, memory_hint: str = ""
) -> AsyncIterator[None]:
    """A failure inside the block says why: the process that ended, the guest that kept silent, the item it refused.

    `memory_hint` is the hint for a guest that panicked for lack of memory.
    """
    try:
        yield
    except DeadlineExceeded as error:
        raise launch_error(
            machine,
            f"the guest did not answer within {timeout_s:g} s",
            hint="look at the console below, or give it more time (boot_timeout_s, fork_timeout_s)",
        ) from error
    except (GuestError, OSError) as error:
        if agent.lost is not None and await _has_ended(machine):
            panic = find_panic(machine.console_tail())
            end = f"the guest panicked: {panic}" if panic else "QEMU ended before the guest was ready"
            if is_out_of_memory(panic):
                raise launch_error(
                    machine, f"the guest ran out of memory ({panic})", hint=memory_hint or _MEMORY
                ) from error
            raise launch_error(machine, f"{end} ({error})") from error
        if isinstance(error, GuestError):
            error.console_tail = machine.console_tail()
            raise
        raise AdoptError("agent", str(error), console_tail=machine.console_tail()) from error


async def _has_ended(machine: Watched) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(machine.wait(), _EXIT_GRACE_S)
    return machine.has_ended


def _machine_ended(machine: Watched) -> MachineEnded:
    panic = find_panic(machine.console_tail())
    hint = _MEMORY if is_out_of_memory(panic) else "take another machine; its console tells what it did"
    return MachineEnded(
        machine.exit_code,
        panic=panic,
        log_tail=machine.log_tail(),
        console_tail=machine.console_tail(),
        hint=_KILLED if machine.exit_code == -signal.SIGKILL else hint,
    )


def find_panic(console: str) -> str:
    """What the guest's kernel said when it panicked; empty when it did not."""
    found = _PANIC.search(console)
    return found[1].strip() if found else ""


def is_out_of_memory(panic: str) -> bool:
    """Whether a guest that panicked so had too little memory."""
    return "memory" in panic


def launch_error(machine: Watched, reason: str, *, hint: str = "") -> LaunchError:
    """A machine that did not come up, with all that is known of why."""
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
