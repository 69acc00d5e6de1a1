"""What a machine's emulator may use of the host at the most, where control groups hold it to that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host.group import Allotment
from vmfork.hypervisor.qemu import most_memory_mib
from vmfork.units import MIB

if TYPE_CHECKING:
    from vmfork.hypervisor.base import Hardware

# QEMU has a few threads beside one for each virtual CPU, and up to 64 in its pool for blocking work.
_TASKS = 128
# One for the threads beside the virtual CPUs: what behaves is never held up.
_OTHER_CPUS = 1


def allot(hardware: Hardware, *, cpu_weight: int, beside_mib: int = 0) -> Allotment:
    """Enough for whatever a machine of `hardware` does by itself, grown as far as it can be.

    `beside_mib` MiB of memory are for a process beside its emulator.
    """
    return Allotment(
        memory_bytes=(hardware.max_memory_mib + most_memory_mib(hardware) + beside_mib) * MIB,
        cpus=hardware.max_cpus + _OTHER_CPUS,
        cpu_weight=cpu_weight,
        tasks=_TASKS + hardware.max_cpus,
    )
