"""The rule: a machine is started where the host can keep every promise, the new one among them. Pure arithmetic.

```
  available     what the kernel says can be had without swapping, or what our control groups leave of it
- reserved      the host's own
- promised      to machines that run: the share of each, less what it uses already
= to give       the new machine's share must fit into this
```
Sizes in MiB, rounded against the machine that asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.admission.charge import DESCRIPTORS
from vmfork.units import format_mib

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmfork.admission.charge import Charge
    from vmfork.config import Limits

# Of the host's memory, what it keeps where nobody said how much.
_RESERVED_PART = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What the host has at one moment. `None` is no limit, or nothing that could be read.

    `total_mib` is its memory, or the limit of our control group. `pressure_percent`: of the last 10 s, as long as all
    its tasks waited for memory.
    """

    available_mib: int
    total_mib: int
    pressure_percent: float | None = None
    descriptors_left: int | None = None
    tasks_left: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promised:
    """What `count` machines that run were promised, and the `owed_mib` of it that they do not use yet."""

    count: int = 0
    owed_mib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Why there is no room: `resource` is short, `reason` says how, and `lines` show the arithmetic."""

    resource: str
    reason: str
    lines: tuple[str, ...]


def reserved_mib(readings: Readings, limits: Limits) -> int:
    """What stays the host's."""
    return readings.total_mib // _RESERVED_PART if limits.reserve_mib is None else limits.reserve_mib


def count_promised(
    charge: Charge,
    charges: Sequence[Charge],
    read_uses_mib: Callable[[], Sequence[int]],
    *,
    readings: Readings,
    limits: Limits,
) -> Promised:
    """What the machines of `charges` are owed. What each uses is only read where not everybody can have the most."""
    most_mib = sum(each.most_mib for each in charges)
    if most_mib + charge.most_mib + reserved_mib(readings, limits) <= readings.available_mib:
        return Promised(count=len(charges), owed_mib=most_mib)
    owed = sum(each.owed_mib(used) for each, used in zip(charges, read_uses_mib(), strict=True))
    return Promised(count=len(charges), owed_mib=owed)


def find_shortage(charge: Charge, promised: Promised, *, readings: Readings, limits: Limits) -> Shortage | None:
    """What keeps one more machine of `charge` from being started, or `None` when nothing does."""
    return (
        _find_too_few("file descriptors", DESCRIPTORS if charge.tasks else 0, readings.descriptors_left)
        or _find_too_few("processes and threads", charge.tasks, readings.tasks_left)
        or _find_memory_shortage(charge, promised, readings, limits)
        or _find_pressure(readings, limits)
    )


def count_fitting(charge: Charge, promised: Promised, *, readings: Readings, limits: Limits) -> int:
    """How many more machines of `charge` have room."""
    if _find_pressure(readings, limits):
        return 0
    kinds = (
        (_to_give_mib(promised, readings, limits), charge.share_mib),
        (readings.descriptors_left, DESCRIPTORS),
        (readings.tasks_left, charge.tasks),
    )
    return min(max(0, have) // each for have, each in kinds if have is not None)


def show_arithmetic(promised: Promised, *, readings: Readings, limits: Limits) -> tuple[str, ...]:
    """What can be given, and how it comes about, line by line."""
    rows = (
        ("available", readings.available_mib),
        ("- reserved", reserved_mib(readings, limits)),
        ("- promised", promised.owed_mib),
        ("= to give", _to_give_mib(promised, readings, limits)),
    )
    machines = "no machine runs" if not promised.count else f"{promised.count} running, beyond what they use"
    notes = {"- reserved": "  the host's own (reserve_mib)", "- promised": f"  {machines}"}
    return tuple(f"{name:<12}{mib:>10} MiB{notes.get(name, '')}" for name, mib in rows)


def _to_give_mib(promised: Promised, readings: Readings, limits: Limits) -> int:
    return readings.available_mib - reserved_mib(readings, limits) - promised.owed_mib


def _find_memory_shortage(charge: Charge, promised: Promised, readings: Readings, limits: Limits) -> Shortage | None:
    have = _to_give_mib(promised, readings, limits)
    if charge.share_mib <= have:
        return None
    part = f"  of {charge.most_mib} that it can ever have (overcommit)" if charge.share_mib < charge.most_mib else ""
    needed = f"{'needed':<12}{charge.share_mib:>10} MiB{part}"
    lines = (*show_arithmetic(promised, readings=readings, limits=limits), needed)
    reason = f"{format_mib(charge.share_mib)} of memory are needed, and {format_mib(max(0, have))} can be promised"
    return Shortage(resource="memory", reason=reason, lines=lines)


def _find_too_few(resource: str, need: int, left: int | None) -> Shortage | None:
    if left is None or need <= left:
        return None
    lines = (f"left        {left:>10}", f"needed      {need:>10}")
    return Shortage(resource=resource, reason=f"{need} {resource} are needed, and {left} are left", lines=lines)


def _find_pressure(readings: Readings, limits: Limits) -> Shortage | None:
    now = readings.pressure_percent
    if now is None or not limits.max_pressure or now <= limits.max_pressure:
        return None
    reason = f"all its tasks wait for memory {now:g} % of the time"
    line = f"all tasks waited for memory {now:g} % of the last 10 s; {limits.max_pressure:g} % may be (max_pressure)"
    return Shortage(resource="memory pressure", reason=reason, lines=(line,))
