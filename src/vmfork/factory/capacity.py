"""How many machines the host has memory for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.host import facts
from vmfork.units import MIB, format_mib

if TYPE_CHECKING:
    from vmfork.factory.kind import Kind

# What a parked fork costs beyond what it shares: QEMU with its translated code, and the pages it wrote. Measured 30 MiB
# with 256 MiB of RAM; twice that once it is used.
PARKED_FORK_MIB = 64


def check_size(size: int, kind: Kind) -> None:
    """Raises `ConfigError`, with the arithmetic, when the host has no memory for `size` parked machines.

    Machines that share a template's memory are counted with what they have of their own, others with all of it.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError("factory.cache", size, f"{size!r} is not a number of machines", hint="give 1 or more")
    each_mib = PARKED_FORK_MIB + (0 if kind.shares_memory else kind.hardware.memory_mib)
    available_mib = facts.available_memory_bytes() // MIB
    if size * each_mib > available_mib:
        raise ConfigError(
            "factory.cache",
            size,
            f"{size} machines of {format_mib(each_mib)} each need {format_mib(size * each_mib)}, "
            f"the host has {format_mib(available_mib)}",
            hint=f"give at most {available_mib // each_mib}",
        )
