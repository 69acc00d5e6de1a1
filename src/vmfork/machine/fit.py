"""A running machine is given more CPUs and memory, and its guest is asked whether it has them.

Both were provided for when it was booted (`max_cpus`, `max_memory_mib`). CPUs are parked and brought online through
sysfs; memory is plugged in.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError, FitError, GuestError, HostError, ProtocolError, VMForkError
from vmfork.host import facts
from vmfork.machine.growth import plan_growth
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.agent.client import AgentClient
    from vmfork.hypervisor.base import Growable, Hardware
    from vmfork.machine.running import Running

_log = logging.getLogger("vmfork")

# Measured under TCG: a CPU comes online in 0.1 s, memory in 0.1 s and 0.1 s more for each 2 GiB.
FIT_LIMIT_S = 60.0
# Bounds each step back. A guest that took a step takes the opposite one as fast.
_UNDO_LIMIT_S = 10.0

_CPUS = "/sys/devices/system/cpu"
_MEMORY = "/sys/devices/system/memory"

# A guest keeps some of the added memory for itself: a descriptor of 64 bytes for each page of 4 KiB. What else it takes
# and gives back in that moment blurs the sum by a few MiB.
_DESCRIPTORS = 64 / 4096
_BLUR_KIB = 4096


async def fit(
    running: Running, *, cpus: int | None = None, memory_mib: int | None = None, timeout_s: float = FIT_LIMIT_S
) -> None:
    """The guest has `cpus` CPUs online and `memory_mib` MiB: it was asked, and the machine's facts say so.

    `None` leaves a size as it is. Memory is rounded up to whole blocks (128 MiB on x86). Raises `ConfigError` when the
    machine cannot have the size, `HostError` when the host has not that much memory, and `GuestError` when the machine
    stands still; nothing was done then. Raises `FitError` when the guest has not the size within `timeout_s` seconds.
    The machine has its old size again, or, where `rolled_back` is false, must be closed. On cancel it is made smaller
    again, as far as the guest gives back what it got.
    """
    machine, agent = running.machine, running.agent
    if running.stands_still:
        raise GuestError(f"VM {running.id} is paused", hint="resume it first")
    before = running.facts.hardware
    growth = plan_growth(before, cpus=cpus, memory_mib=memory_mib)
    wanted = f"{growth.cpus} CPUs and {format_mib(before.memory_mib + growth.added_mib)}"
    steps = _Steps()
    try:
        async with asyncio.timeout(timeout_s):
            if growth.added_mib:
                block_mib = await _read_block_mib(agent)
                growth = plan_growth(before, cpus=cpus, memory_mib=memory_mib, block_mib=block_mib)
                _check_host(growth.added_mib)
            if cpus is not None:
                await _online_cpus(agent, before, growth.cpus, steps)
            if growth.added_mib:
                await _add_memory(machine, agent, growth.added_mib, steps)
    except (VMForkError, TimeoutError) as error:
        done = bool(steps)
        left = await steps.take_back()
        if isinstance(error, (ConfigError, HostError)) and not done:
            raise
        late = isinstance(error, TimeoutError) and not isinstance(error, VMForkError)
        reason = f"it took longer than {timeout_s:g} s" if late else getattr(error, "reason", str(error))
        log = error.details() if isinstance(error, VMForkError) else ""
        raise FitError(wanted, reason, left=left, log=log) from error
    except BaseException:
        await steps.take_back()
        raise
    after = replace(
        before,
        cpus=growth.cpus,
        memory_mib=before.memory_mib + growth.added_mib,
        added_mib=(*before.added_mib, growth.added_mib) if growth.added_mib else before.added_mib,
    )
    if memory_mib is not None and after.memory_mib != memory_mib:
        told = "VM %s has %d MiB for %d asked: its guest takes whole blocks"
        _log.info(told, running.id, after.memory_mib, memory_mib)
    running.change_hardware(after)


class _Steps:
    """What was done so far, each with what takes it back."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, what: str, undo: Callable[[], Awaitable[None]]) -> None:
        self._steps.append((what, undo))

    async def take_back(self) -> str:
        """Every step was taken back, the last one first. Gives those that could not be, in words."""
        left = []
        while self._steps:
            what, undo = self._steps.pop()
            try:
                async with asyncio.timeout(_UNDO_LIMIT_S):
                    await undo()
            except (VMForkError, TimeoutError) as error:
                left.append(f"{what} ({error or 'no answer'})")
        return "; ".join(left)


async def _online_cpus(agent: AgentClient, hardware: Hardware, count: int, steps: _Steps) -> None:
    """Exactly `count` CPUs are online; those that were parked came in the order of their numbers."""
    present = await _read_cpus(agent, "present")
    if len(present) != hardware.max_cpus:
        # Device state of a machine with another number of CPUs is loaded without a word (QEMU 7.2).
        raise FitError(f"{count} CPUs", f"the guest knows of {len(present)} CPUs, the machine has {hardware.max_cpus}")
    online = await _read_cpus(agent, "online")
    for cpu in sorted(present - online)[: max(0, count - len(online))]:
        switch = f"{_CPUS}/cpu{cpu}/online"
        steps.add(f"CPU {cpu}", lambda switch=switch: _set(agent, switch, b"0"))  # type: ignore[misc]
        await _set(agent, switch, b"1")
    now = await _read_cpus(agent, "online")
    if len(now) != count:
        raise FitError(f"{count} CPUs", f"{len(now)} CPUs are online in the guest")


async def _add_memory(machine: Growable, agent: AgentClient, size_mib: int, steps: _Steps) -> None:
    """The guest uses `size_mib` MiB more. Its policy for new memory is as it was before."""
    before = await _read_total_kib(agent)
    policy_file = f"{_MEMORY}/auto_online_blocks"
    if keeps_offline := (await _read(agent, policy_file)).strip() == b"offline":
        steps.add("what it does with new memory", lambda: _set(agent, policy_file, b"offline"))
        await _set(agent, policy_file, b"online")
    name = f"dimm-{secrets.token_hex(4)}"
    steps.add(f"{format_mib(size_mib)} of memory", lambda: machine.remove_memory(name))
    await machine.add_memory(name, size_mib)
    if keeps_offline:
        await _set(agent, policy_file, b"offline")
    check_grown(before, await _read_total_kib(agent), size_mib)
    with suppress(GuestError):  # an older agent leaves its file systems as large as they were
        await agent.grown(timeout_s=None)


def check_grown(before_kib: int, after_kib: int, size_mib: int) -> None:
    """Raises `FitError` when the guest's MemTotal did not grow by `size_mib` MiB, less its page descriptors."""
    grown, added = after_kib - before_kib, size_mib * 1024
    if not added - added * _DESCRIPTORS - _BLUR_KIB <= grown <= added + _BLUR_KIB:
        raise FitError(format_mib(size_mib), f"the guest's memory grew by {grown} KiB, {added} KiB were added")


def parse_cpus(text: bytes) -> frozenset[int]:
    """The CPUs in a list as the kernel writes it: `0-3,5`. Raises `ProtocolError` for anything else."""
    try:
        spans = [[int(end) for end in span.split(b"-", 1)] for span in text.strip().split(b",") if span]
    except ValueError:
        raise ProtocolError(f"{text!r} is not a list of CPUs") from None
    return frozenset(cpu for span in spans for cpu in range(span[0], span[-1] + 1))


def _check_host(added_mib: int) -> None:
    available = facts.available_memory_bytes() // MIB
    if added_mib > available:
        raise HostError(
            f"not enough memory: {format_mib(added_mib)} are to be added and {format_mib(available)} are available",
            hint="free memory, or ask for less",
        )


async def _read_cpus(agent: AgentClient, which: str) -> frozenset[int]:
    return parse_cpus(await _read(agent, f"{_CPUS}/{which}"))


async def _read_block_mib(agent: AgentClient) -> int:
    text = await _read(agent, f"{_MEMORY}/block_size_bytes")
    try:
        return max(int(text, 16) // MIB, 1)
    except ValueError:
        raise ProtocolError(f"{text!r} is not a size of a block") from None


async def _read_total_kib(agent: AgentClient) -> int:
    for line in (await _read(agent, "/proc/meminfo")).splitlines():
        if line.startswith(b"MemTotal:"):
            return int(line.split()[1])
    raise ProtocolError("the guest's /proc/meminfo has no MemTotal")


async def _read(agent: AgentClient, path: str) -> bytes:
    return await agent.read_file(path, timeout_s=None)


async def _set(agent: AgentClient, path: str, value: bytes) -> None:
    # In place: these files cannot be replaced.
    await agent.write_file(path, value, append=True, timeout_s=None)
