"""What size a machine can be given: arithmetic before anything is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from vmfork.config.values import MEMORY_BLOCK_MIB
from vmfork.errors import ConfigError
from vmfork.hypervisor.qemu import board_of
from vmfork.units import Unsaid, format_mib

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfork.config import VMConfig
    from vmfork.hypervisor.base import Hardware


@dataclass(frozen=True, slots=True)
class Change:
    """What a machine is to have: `cpus` CPUs online, and `added_mib` MiB more than now, or `removed` pieces less."""

    cpus: int
    added_mib: int = 0
    removed: int = 0

    def memory_of(self, before: Hardware) -> int:
        """MiB that a machine of `before` has after it."""
        return before.memory_mib + self.added_mib - sum(_last(before.added_mib, self.removed))


class Lack(StrEnum):
    """What a machine has no room for, under the name of the configuration's field."""

    CPUS = "cpus"
    MEMORY = "memory_mib"
    CPU_ROOM = "max_cpus"
    MEMORY_ROOM = "max_memory_mib"


def raise_to_least(config: VMConfig, least_mib: int) -> VMConfig:
    """`config`, with `least_mib` MiB of memory or a little more where nobody said how much, and the default is less.

    A little more where that leaves whole blocks to grow by. Raises `ConfigError` when it may not grow so far.
    """
    if not isinstance(config.memory_mib, Unsaid) or config.memory_mib >= least_mib:
        return config
    most_mib = config.max_memory_mib
    if 0 < most_mib < least_mib:
        fitting_mib = config.memory_mib + _whole_blocks(least_mib - config.memory_mib, MEMORY_BLOCK_MIB)
        hint = f"give {fitting_mib}, or 0 for no growth"
        raise ConfigError("vm.max_memory_mib", most_mib, f"image {config.image!r} needs more", hint=hint)
    growth_mib = max(0, most_mib - least_mib) // MEMORY_BLOCK_MIB * MEMORY_BLOCK_MIB
    return replace(config, memory_mib=most_mib - growth_mib if most_mib else least_mib)


def find_lack(hardware: Hardware, *, cpus: int, memory_mib: int) -> Lack | None:
    """What a machine of `hardware` cannot be grown to, or `None`. To have more than was asked is no lack."""
    if cpus > hardware.max_cpus:
        return Lack.CPUS
    missing_mib = _whole_blocks(memory_mib - hardware.memory_mib, MEMORY_BLOCK_MIB)
    if missing_mib > 0 and hardware.memory_mib + missing_mib > hardware.max_memory_mib:
        return Lack.MEMORY
    return None


def plan_growth(
    hardware: Hardware, *, cpus: int | None = None, memory_mib: int | None = None, whose: str = "the machine"
) -> Change:
    """What turns a machine of `hardware`, that only grows, into one of that size. `None` leaves a size as it is.

    Raises `ConfigError`, with the arithmetic, for less than there is and for more than there is room for. `whose` names
    the machine in it.
    """
    for field, wanted, have, spell in (
        ("vm.cpus", cpus, hardware.cpus, str),
        ("vm.memory_mib", memory_mib, hardware.memory_mib, format_mib),
    ):
        if wanted is not None and wanted < have:
            hint = f"leave it out, or take a smaller machine: forks have at least what it has ({spell(have)})"
            raise ConfigError(field, wanted, f"{whose} has {spell(have)}, not {spell(wanted)}", hint=hint)
    return plan_change(hardware, cpus=cpus, memory_mib=memory_mib, whose=whose)


def plan_change(
    hardware: Hardware,
    *,
    cpus: int | None = None,
    memory_mib: int | None = None,
    whose: str = "the machine",
    block_mib: int = MEMORY_BLOCK_MIB,
) -> Change:
    """What turns a machine of `hardware` into one of that size. `None` leaves a size as it is.

    More memory is rounded up to whole blocks of `block_mib` MiB above what there is, and less to what is left without
    the pieces that were added last. Raises `ConfigError`, with the arithmetic, for what the machine cannot have.
    """
    wanted_cpus = hardware.cpus if cpus is None else cpus
    if wanted_cpus < 1:
        raise ConfigError("vm.cpus", wanted_cpus, f"{wanted_cpus} is out of range", hint="give 1 or more")
    if wanted_cpus > hardware.max_cpus:
        raise _refused("vm.cpus", wanted_cpus, hardware.cpus, hardware.max_cpus, whose, spell=str, option="--max-cpus")
    if memory_mib is not None and memory_mib < hardware.memory_mib:
        return Change(wanted_cpus, removed=_plan_removal(hardware, memory_mib, whose))
    wanted_mib = hardware.memory_mib if memory_mib is None else memory_mib
    added_mib = _whole_blocks(wanted_mib - hardware.memory_mib, block_mib)
    if hardware.memory_mib + added_mib > hardware.max_memory_mib:
        rounded = f"rounded up to blocks of {block_mib} MiB above it: {format_mib(hardware.memory_mib + added_mib)}"
        raise _refused(
            "vm.memory_mib",
            wanted_mib,
            hardware.memory_mib,
            hardware.max_memory_mib,
            whose,
            spell=format_mib,
            option="--max-memory" if board_of(hardware.machine).takes_memory else "--machine q35 --max-memory",
            more=f" ({rounded})" if added_mib > wanted_mib - hardware.memory_mib else "",
        )
    return Change(wanted_cpus, added_mib)


def _plan_removal(hardware: Hardware, wanted_mib: int, whose: str) -> int:
    """How many of the pieces added last must go so that just `wanted_mib` MiB, or the next more, are left."""
    pieces = hardware.added_mib
    left_mib = [hardware.memory_mib - sum(_last(pieces, count)) for count in range(1, len(pieces) + 1)]
    fitting = [count for count, size_mib in enumerate(left_mib, 1) if size_mib >= wanted_mib]
    if fitting and wanted_mib >= hardware.base_memory_mib:
        return fitting[-1]
    booted = f"of which it was booted with {format_mib(hardware.base_memory_mib)}"
    raise ConfigError(
        "vm.memory_mib",
        wanted_mib,
        f"{whose} has {format_mib(hardware.memory_mib)}, {booted}; only what was added can go, the last piece first",
        hint=f"give {' or '.join(map(format_mib, left_mib))}" if left_mib else "take a smaller machine",
    )


def _last(pieces: tuple[int, ...], count: int) -> tuple[int, ...]:
    return pieces[len(pieces) - count :]


def _whole_blocks(size_mib: int, block_mib: int) -> int:
    return -(-size_mib // block_mib) * block_mib


def _refused(
    field: str,
    wanted: int,
    have: int,
    most: int,
    whose: str,
    *,
    spell: Callable[[int], str],
    option: str,
    more: str = "",
) -> ConfigError:
    room = f"and room for {spell(most - have)} more, {spell(most)} in all" if most > have else "and cannot grow"
    return ConfigError(
        field,
        wanted,
        f"{whose} has {spell(have)} {room}; {spell(wanted)} were asked for{more}",
        hint=f"ask for at most {spell(most)}, or build a template with room: "
        f"vmfork template build NAME {option} {wanted}",
    )
