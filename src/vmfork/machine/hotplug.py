"""CPUs and memory of a running guest: brought online and taken offline, and the guest asked whether it has them."""

from __future__ import annotations

import asyncio
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from vmfork.errors import FitError, GuestError, HostError, ProtocolError, VMForkError
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmfork.agent.client import AgentClient
    from vmfork.hypervisor.base import Growable, Hardware, MemoryPiece

_CPUS = "/sys/devices/system/cpu"
_MEMORY = "/sys/devices/system/memory"

# Bounds each step back. A guest that took a step takes the opposite one as fast.
_UNDO_LIMIT_S = 10.0
# A guest keeps some of the added memory for itself: a descriptor of 64 bytes for each page of 4 KiB. What else it takes
# and gives back in that moment blurs the sum by a few MiB.
_DESCRIPTORS = 64 / 4096
_BLUR_KIB = 4096
# So much must be available in a guest beyond what it gives back.
_MARGIN_MIB = 16
# What the kernel says of these is short; a guest may say anything.
_MOST_TOLD = 65_536
_MOST_CPUS = 8192  # CONFIG_NR_CPUS_RANGE_END of x86 (arch/x86/Kconfig)
_SPAN = re.compile(rb"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_KIB, _HEX = re.compile(rb"[0-9]{1,15}"), re.compile(rb"[0-9a-f]{1,12}")


class Steps:
    """What was done so far, each with what takes it back."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def add(self, what: str, undo: Callable[[], Awaitable[object]]) -> None:
        self._steps.append((what, undo))

    def forget(self) -> None:
        """The last step came to nothing: there is nothing to take back."""
        self._steps.pop()

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


async def set_cpus(agent: AgentClient, hardware: Hardware, count: int, steps: Steps) -> None:
    """Exactly `count` CPUs are online. They come in the order of their numbers, and go in the opposite one.

    The first stays: Linux on x86 does not take it offline.
    """
    present = await _read_cpus(agent, "present")
    if len(present) != hardware.max_cpus:
        # Device state of a machine with another number of CPUs is loaded without a word (QEMU 7.2).
        raise FitError(f"{count} CPUs", f"the guest knows of {len(present)} CPUs, the machine has {hardware.max_cpus}")
    online = await _read_cpus(agent, "online")
    for cpu in sorted(present - online)[: max(0, count - len(online))]:
        await _switch_cpu(agent, cpu, b"1", b"0", steps)
    for cpu in sorted(online, reverse=True)[: max(0, len(online) - count)]:
        await _switch_cpu(agent, cpu, b"0", b"1", steps)
    now = await _read_cpus(agent, "online")
    if len(now) != count:
        raise FitError(f"{count} CPUs", f"{len(now)} CPUs are online in the guest")


async def _switch_cpu(agent: AgentClient, cpu: int, state: bytes, former: bytes, steps: Steps) -> None:
    switch = f"{_CPUS}/cpu{cpu}/online"
    steps.add(f"CPU {cpu}", lambda: _set(agent, switch, former))
    await _set(agent, switch, state)


async def add_memory(machine: Growable, agent: AgentClient, size_mib: int, steps: Steps) -> None:
    """The guest uses `size_mib` MiB more. Its policy for new memory is as it was before."""
    before = await _read_total_kib(agent)
    policy_file = f"{_MEMORY}/auto_online_blocks"
    if keeps_offline := (await _read(agent, policy_file)).strip() == b"offline":
        steps.add("what it does with new memory", lambda: _set(agent, policy_file, b"offline"))
        await _set(agent, policy_file, b"online")
    name = _new_name()
    steps.add(f"{format_mib(size_mib)} of memory", lambda: machine.remove_memory(name))
    await machine.add_memory(name, size_mib)
    if keeps_offline:
        await _set(agent, policy_file, b"offline")
    check_change(before, await _read_total_kib(agent), size_mib)
    with suppress(GuestError):  # an older agent leaves its file systems as large as they were
        await agent.grown(timeout_s=None)


async def remove_memory(machine: Growable, agent: AgentClient, count: int, steps: Steps) -> None:
    """The guest does without the `count` pieces of memory that were added last.

    It moves what is in them elsewhere. Raises `FitError`, naming the size of the piece, when that holds what it cannot
    move.
    """
    before = await _read_total_kib(agent)
    pieces = (await machine.list_memory())[-count:]
    size_mib = sum(piece.size_mib for piece in pieces)
    less = f"{format_mib(size_mib)} less"
    available_mib = await _read_memory_kib(agent, b"MemAvailable") // 1024
    if available_mib < size_mib + _MARGIN_MIB:
        # Linux 6.12 would try to move what is in it for ever, with all of a CPU (mm/memory_hotplug.c, offline_pages).
        raise FitError(less, f"its guest needs it: {format_mib(available_mib)} are available in it")
    for piece in reversed(pieces):
        steps.add(f"{format_mib(piece.size_mib)} of memory", lambda piece=piece: _put_back(machine, piece))  # type: ignore[misc]
        try:
            await machine.remove_memory(piece.name)
        except HostError as error:
            steps.forget()
            raise FitError(less, f"{format_mib(piece.size_mib)} stay: {error}") from error
    check_change(before, await _read_total_kib(agent), -size_mib)


async def _put_back(machine: Growable, piece: MemoryPiece) -> None:
    if piece in await machine.list_memory():
        raise HostError("its guest may still give it back")
    await machine.remove_memory(piece.name)  # what is left of it
    await machine.add_memory(_new_name(), piece.size_mib)


def _new_name() -> str:
    return f"dimm-{secrets.token_hex(4)}"


def check_change(before_kib: int, after_kib: int, size_mib: int) -> None:
    """Raises `FitError` when the guest's MemTotal did not change by `size_mib` MiB, but for its page descriptors."""
    changed, wanted = after_kib - before_kib, size_mib * 1024
    if abs(changed - wanted) > abs(wanted) * _DESCRIPTORS + _BLUR_KIB:
        raise FitError(
            format_mib(size_mib), f"the guest's memory changed by {changed} KiB, {wanted} KiB were asked for"
        )


def parse_cpus(text: bytes) -> frozenset[int]:
    """The CPUs in a list as the kernel writes it: `0-3,5`. Raises `ProtocolError` for anything else."""
    cpus: set[int] = set()
    for span in filter(None, text.strip().split(b",")):
        match = _SPAN.fullmatch(span)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        # In order, and each once: else a short list says more than there is time to count.
        if not max(cpus, default=-1) < first <= last < _MOST_CPUS:
            raise ProtocolError(f"{text[:80]!r} is not a list of CPUs")
        cpus.update(range(first, last + 1))
    return frozenset(cpus)


async def _read_cpus(agent: AgentClient, which: str) -> frozenset[int]:
    return parse_cpus(await _read(agent, f"{_CPUS}/{which}"))


async def read_block_mib(agent: AgentClient) -> int:
    text = (await _read(agent, f"{_MEMORY}/block_size_bytes")).strip()
    if not _HEX.fullmatch(text):
        raise ProtocolError(f"{text[:80]!r} is not a size of a block")
    return max(int(text, 16) // MIB, 1)


async def _read_total_kib(agent: AgentClient) -> int:
    return await _read_memory_kib(agent, b"MemTotal")


async def _read_memory_kib(agent: AgentClient, field: bytes) -> int:
    for line in (await _read(agent, "/proc/meminfo")).splitlines():
        name, _, rest = line.partition(b":")
        if name == field and (number := _KIB.match(rest.strip())):
            return int(number[0])
    raise ProtocolError(f"the guest's /proc/meminfo has no {field.decode()}")


async def _read(agent: AgentClient, path: str) -> bytes:
    return await agent.read_file(path, max_bytes=_MOST_TOLD, timeout_s=None)


async def _set(agent: AgentClient, path: str, value: bytes) -> None:
    # In place: these files cannot be replaced.
    await agent.write_file(path, value, append=True, timeout_s=None)
