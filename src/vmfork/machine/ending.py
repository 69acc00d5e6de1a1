"""How the end of a machine is told to those who wait for its guest, and to those who wait for it to start."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from vmfork.border import find_hint
from vmfork.errors import (
    AdoptError,
    DeadlineExceeded,
    GuestError,
    HostError,
    LaunchError,
    MachineEnded,
    RolledBack,
    VMForkError,
)
from vmfork.host.keeper import REFUSED_STATUS, REFUSED_TEXT
from vmfork.hypervisor.base import HALTED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from vmfork.agent.client import AgentClient
    from vmfork.hypervisor.base import Machine, Watched

# From the moment the agent's connection closes to the process being reaped.
_EXIT_GRACE_S = 2.0
# A guest that printed the words of a halt has this long to show, by its agent, that it runs on.
_HALT_GRACE_S = 5.0
# A guest that was silent for this long is asked for a sign of life; silent for as long again, it is lost. It answers
# within milliseconds, and within seconds on a host with many times more guests than cores.
SILENCE_LIMIT_S = 60.0
# A lack of memory is told by the word: "System is deadlocked on memory", "Out of memory and no killable processes", and
# with panic_on_oom "Out of memory: ... panic_on_oom is enabled" (mm/oom_kill.c).
_PANIC = re.compile(r"Kernel panic - not syncing: ([^\r\n]*)")
_at_work: set[asyncio.Future[None]] = set()
_MEMORY = "give it more memory (memory_mib)"
_UNKNOWN = "QEMU's log and the guest's console below may tell why; vmfork doctor looks at the host"
_KILLED = "it was killed, as the kernel does for lack of memory: look at dmesg and at the memory limits in force"


def watch_end(
    machine: Machine,
    agent: AgentClient,
    *,
    find_reason: Callable[[], str | RolledBack] = str,
) -> None:
    """Whoever waits for the agent is told when the machine ends, halts, or says nothing any more: every wait ends.

    `find_reason` tells why somebody else ended it, once it has ended; empty where nobody did.
    """
    machine.on_exit(lambda _code: _tell_end(machine, agent, find_reason))
    agent.await_reason(_EXIT_GRACE_S)
    machine.on_halt(lambda: _keep(_end_halted(machine, agent)))
    agent.watch_silence(SILENCE_LIMIT_S, lambda: _keep(_end_silent(machine, agent)))


def _tell_end(machine: Machine, agent: AgentClient, find_reason: Callable[[], str | RolledBack]) -> None:
    if isinstance(agent.lost, (MachineEnded, RolledBack)):
        return  # it was ended by us, and why is known
    reason = find_reason()
    agent.fail(reason if isinstance(reason, RolledBack) else _machine_ended(machine, reason))


def _keep(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    _at_work.add(task)
    task.add_done_callback(_at_work.discard)


async def _end_halted(machine: Machine, agent: AgentClient) -> None:
    """A guest that halted is ended, as if it had powered off. If it only printed the words, it answers, and runs on.

    One that somebody paused is waited for.
    """
    while True:
        try:
            await agent.ping(timeout_s=_HALT_GRACE_S)
        except DeadlineExceeded:
            if await _is_paused(machine):
                continue
            machine.kill()
        except (VMForkError, OSError):
            pass  # it ended by itself
        return


async def _is_paused(machine: Machine) -> bool:
    with suppress(VMForkError, TimeoutError, OSError):
        async with asyncio.timeout(_HALT_GRACE_S):
            return not await machine.is_running()
    return False


async def _end_silent(machine: Machine, agent: AgentClient) -> None:
    """The agent counts as lost, unless somebody paused the guest: then it is waited for."""
    if await _is_paused(machine):
        agent.wait_on()
        return
    if agent.lost is None:
        agent.fail(
            GuestError(
                f"the guest has said nothing for {2 * SILENCE_LIMIT_S:g} s",
                hint="its kernel may be stuck, or the host overloaded: close it, and take another machine",
                console_tail=machine.console_tail(),
            )
        )


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
        if agent.lost is not None and await has_ended(machine):
            check_contained(machine)
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


async def has_ended(machine: Watched) -> bool:
    """Whether the machine has ended, or does within 2 s. What it had open is closed before its process has ended."""
    with suppress(TimeoutError):
        await asyncio.wait_for(machine.wait(), _EXIT_GRACE_S)
    return machine.has_ended


def check_contained(machine: Watched) -> None:
    """Raises `HostError` when the machine was not started because the host refused what was to keep it in."""
    _, found, reason = machine.log_tail().rpartition(REFUSED_TEXT)
    if machine.exit_code in (REFUSED_STATUS, -signal.SIGKILL) and found:
        raise HostError(
            f"this host refuses what keeps an emulator from it: {reason.strip()}",
            hint="vmfork doctor tries anew what the host can do, and that is used from then on",
            log=machine.log_tail(),
        )


def _machine_ended(machine: Watched, reason: str = "") -> MachineEnded:
    panic = find_panic(machine.console_tail())
    halted = HALTED in machine.console_tail()
    hint = _MEMORY if is_out_of_memory(panic) else "take another machine; its console tells what it did"
    return MachineEnded(
        machine.exit_code,
        panic=panic,
        halted=halted,
        reason=reason,
        log_tail=machine.log_tail(),
        console_tail=machine.console_tail(),
        hint=_KILLED if machine.exit_code == -signal.SIGKILL and not halted else hint,
    )


def find_panic(console: str) -> str:
    """What the guest's kernel said when it panicked; empty when it did not."""
    found = _PANIC.search(console)
    return found[1].strip() if found else ""


def is_out_of_memory(panic: str) -> bool:
    """Whether a guest that said this when it panicked had too little memory."""
    return "memory" in panic


def launch_error(machine: Watched, reason: str, *, hint: str = "") -> LaunchError:
    """A machine that did not come up, with all that is known of why."""
    log_tail = machine.log_tail()
    if machine.exit_code == -signal.SIGKILL:
        hint = _KILLED
    return LaunchError(
        reason,
        argv=machine.argv,
        exit_code=machine.exit_code,
        log_tail=log_tail,
        console_tail=machine.console_tail(),
        hint=hint or find_hint(log_tail) or _UNKNOWN,
    )
