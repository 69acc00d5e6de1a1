"""What one machine may come to take of the host."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

from vmfork.config import Limits  # noqa: TC001 - a record's types are looked up when it is read

# The least that an emulator is trusted to need beside its guest's memory. Measured under TCG: 74 MiB once the guest has
# run a Python that imports ssl and sqlite3, most of it translated code.
EMULATOR_MIB = 96
# Measured: what a machine keeps open in its owner's process, and what is open besides while one is started.
DESCRIPTORS = 16
# Measured: the keeper, and QEMU's threads beside one for each CPU.
_TASKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a machine is counted with: `share_mib` of memory, and `most_mib` once it has used up its share.

    The most is all that it can ever have of its own, `emulator_mib` of it beside its guest's. `tasks` are processes and
    threads. `has_ram_file`: its RAM lies in a file of its own, as that of a template does that is being built.
    """

    share_mib: int
    most_mib: int
    tasks: int = 0
    has_ram_file: bool = False

    @classmethod
    def of_boot(cls, *, memory_mib: int, emulator_mib: int, cpus: int, overcommit: float, has_ram_file: bool) -> Self:
        """A booted machine: all its RAM is its own."""
        return cls(
            share_mib=memory_mib + _trusted_mib(emulator_mib, overcommit),
            most_mib=memory_mib + emulator_mib,
            tasks=_TASKS + cpus,
            has_ram_file=has_ram_file,
        )

    @classmethod
    def of_fork(cls, *, memory_mib: int, emulator_mib: int, cpus: int, overcommit: float) -> Self:
        """A fork: it reads its template's memory, and may come to write all of it."""
        written = math.ceil(memory_mib / overcommit)
        return cls(
            share_mib=written + _trusted_mib(emulator_mib, overcommit),
            most_mib=memory_mib + emulator_mib,
            tasks=_TASKS + cpus,
        )

    @classmethod
    def of_growth(cls, added_mib: int) -> Self:
        """Memory that is added to a machine: it is nobody's copy, and was asked for."""
        return cls(share_mib=added_mib, most_mib=added_mib)

    def grown(self, added_mib: int) -> Charge:
        """The same machine with more memory, or with less where that is negative."""
        return replace(self, share_mib=self.share_mib + added_mib, most_mib=self.most_mib + added_mib)

    def owed_mib(self, used_mib: int) -> int:
        """What the machine may still come to take, where it has `used_mib` now.

        One within its share is trusted to stay there. One beyond it is expected to take all that it can.
        """
        return max(0, (self.share_mib if used_mib <= self.share_mib else self.most_mib) - used_mib)


def _trusted_mib(emulator_mib: int, overcommit: float) -> int:
    return min(emulator_mib, max(EMULATOR_MIB, math.ceil(emulator_mib / overcommit)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a machine was let in with: its charge, and the limits that held."""

    charge: Charge
    limits: Limits
