"""Which base serves a request: what must be equal, what can be grown, and what may be larger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmfork.errors import ConfigError
from vmfork.machine.fit import plan_growth

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.factory.kind import Base
    from vmfork.hypervisor.base import Hardware


@dataclass(frozen=True, slots=True)
class Choice:
    """The base that serves a request, or `None` where none does, and why.

    `reason` is `exact`, `grown` or `larger` with a base. Without one it is the first thing in which the nearest base
    differs: a trait, `cpus` or `memory_mib`; `oversize` when every base that would do is larger than asked.
    """

    base: Base | None
    reason: str


@dataclass(frozen=True, slots=True)
class Want:
    """What is asked for."""

    traits: Mapping[str, str]
    cpus: int
    memory_mib: int


def choose(bases: Sequence[Base], want: Want, *, oversize: bool) -> Choice:
    """The best base: one of just that size, then one that grows, then, with `oversize`, the smallest that is larger.

    Among those that grow, fewer CPUs to bring online come first (seconds each under TCG), then less memory.
    """
    fitting: list[tuple[tuple[int, ...], Base, str]] = []
    misses: list[str] = []
    for base in bases:
        if (differing := find_difference(base.kind.traits, want.traits)) is not None:
            misses.append(differing)
            continue
        kind = judge_size(base.kind.hardware, want)
        if kind in _RANKS and (kind != "larger" or oversize):
            fitting.append(((_RANKS[kind], *_cost(base.kind.hardware, want)), base, kind))
        else:
            misses.append("oversize" if kind == "larger" else kind)
    if fitting:
        _, base, kind = min(fitting, key=lambda entry: entry[0])
        return Choice(base, kind)
    # A base that is of the right kind tells more than one that is not.
    for reason in ("oversize", "memory_mib", "cpus"):
        if reason in misses:
            return Choice(None, reason)
    return Choice(None, misses[0] if misses else "no base")


_RANKS = {"exact": 0, "grown": 1, "larger": 2}


def judge_size(have: Hardware, want: Want) -> str:
    """`exact`, `grown` (possible from below), `larger`, or the size in which the base cannot get there."""
    if (have.cpus, have.memory_mib) == (want.cpus, want.memory_mib):
        return "exact"
    more = replace(have, cpus=min(have.cpus, want.cpus), memory_mib=min(have.memory_mib, want.memory_mib))
    try:
        plan_growth(more, cpus=want.cpus, memory_mib=want.memory_mib)
    except ConfigError as error:
        return error.field.removeprefix("vm.")
    return "larger" if have.cpus > want.cpus or have.memory_mib > want.memory_mib else "grown"


def _cost(have: Hardware, want: Want) -> tuple[int, int]:
    return abs(want.cpus - have.cpus), abs(want.memory_mib - have.memory_mib)


def find_difference(have: Mapping[str, str], want: Mapping[str, str]) -> str | None:
    """The first trait of `want` that `have` has not, or `None`."""
    return next((key for key, value in want.items() if have.get(key) != value), None)
