"""Which base serves a request: what must be equal, what can be grown, and what may be larger."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from vmfork.errors import ImageCorrupt, ImageNotFound
from vmfork.machine.growth import Lack, find_lack, raise_to_least
from vmfork.machine.traits import image_traits, wanted_traits
from vmfork.store.manifest import list_differing
from vmfork.units import Unsaid, format_mib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfork.config import VMConfig
    from vmfork.factory.kind import Base, Kind
    from vmfork.hypervisor.base import Hardware
    from vmfork.image import Image, ImageStore


class Match(StrEnum):
    """How a base comes to the size that was asked for: it has it, it is grown to it, or it is larger."""

    EXACT = "exact"
    GROWN = "grown"
    LARGER = "larger"


@dataclass(frozen=True, slots=True)
class Choice:
    """The base that serves a request, and how."""

    base: Base
    match: Match


@dataclass(frozen=True, slots=True)
class Miss:
    """No base serves a request. `reason` is counted: a trait, a size, or the code of an error; `detail` tells more."""

    reason: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Oversize(Miss):
    """Every base that would do is larger than asked."""

    reason: str = "oversize"


@dataclass(frozen=True, slots=True)
class Want:
    """What is asked for. `image` is the configuration's image as it is on this host now, or `None` when it is not.

    `like` is the base whose machines are wanted, where nothing in particular was asked for: `config` asks for the same,
    in the size that is wanted.
    """

    config: VMConfig
    image: Image | None
    like: Base | None = None

    @classmethod
    def of(cls, config: VMConfig, *, images: ImageStore, like: Base | None = None) -> Self:
        """What `config` asks for, given the images that are here. A client of a server may have none."""
        try:
            image = images.open(config.image)
        except (ImageNotFound, ImageCorrupt):
            return cls(config, None, like)
        return cls(raise_to_least(config, image.min_memory_mib or 0), image, like)

    def sized_for(self, have: Hardware) -> VMConfig:
        """What is asked of a machine of `have`.

        Where nobody said how much memory, and the image is not here to tell what it needs, that is what such a machine
        has.
        """
        config = self.config
        if self.image is None and isinstance(config.memory_mib, Unsaid) and not config.max_memory_mib:
            return replace(config, memory_mib=max(config.memory_mib, have.memory_mib))
        return config

    def find_differences(self, kind: Kind) -> tuple[str, ...]:
        """The traits in which machines of `kind` are not what is asked for. Sizes are not traits.

        An image is compared by its content, and by its name when it is not here.
        """
        wanted = wanted_traits(self.config, machine=kind.hardware.machine, accel=kind.hardware.accel)
        if self.image is not None:
            wanted |= image_traits(self.image)
        elif self.config.image != kind.image:
            return ("image",)
        return list_differing(kind.traits, wanted)


def choose(bases: Sequence[Base], want: Want, *, oversize: bool) -> Choice | Miss:
    """The best base: one of just that size, then one that grows, then, with `oversize`, the smallest that is larger.

    Among those that grow, fewer CPUs to bring online come first (seconds each under TCG), then less memory.
    """
    fitting: list[tuple[tuple[int, ...], Choice]] = []
    misses: list[Miss] = []
    for base in bases:
        kind = base.kind
        if base is not want.like and (differing := want.find_differences(kind)):
            misses.append(Miss(differing[0], _tell_difference(kind, differing[0], want)))
            continue
        wanted = want.sized_for(kind.hardware)
        found = judge_size(kind.hardware, wanted)
        if isinstance(found, Lack):
            misses.append(Miss(found.value, f"{kind.name} has no room for {spell_size(want.config)}"))
        elif found is Match.LARGER and not oversize:
            misses.append(Oversize(detail=f"{kind.name} is larger: {spell_size(kind.hardware)}"))
        else:
            fitting.append(((_RANKS[found], *_cost(kind.hardware, wanted)), Choice(base, found)))
    if fitting:
        return min(fitting, key=lambda entry: entry[0])[1]
    # A base that is of the right kind tells more than one that is not.
    for telling in (Oversize(), *(Miss(lack.value) for lack in _TELLING)):
        if telling in misses:
            return misses[misses.index(telling)]
    return misses[0] if misses else Miss("no base")


def _tell_difference(kind: Kind, trait: str, want: Want) -> str:
    if trait not in kind.traits or trait.startswith("image"):
        return f"{kind.name} is of another {trait.partition('.')[0]}"
    wanted = wanted_traits(want.config, machine=kind.hardware.machine, accel=kind.hardware.accel)
    return f"{kind.name} has {trait} {kind.traits[trait]!r}, {wanted[trait]!r} was asked for"


def spell_size(size: Hardware | VMConfig) -> str:
    """CPUs and memory, for people."""
    return f"{size.cpus} CPU and {format_mib(size.memory_mib)}"


_TELLING = (Lack.MEMORY, Lack.CPUS, Lack.MEMORY_ROOM, Lack.CPU_ROOM)
_RANKS = {Match.EXACT: 0, Match.GROWN: 1, Match.LARGER: 2}


def judge_size(have: Hardware, want: VMConfig) -> Match | Lack:
    """How a machine of `have` comes to the size that is wanted, or what it has no room for, now or later."""
    if (
        lack := find_lack(have, cpus=want.cpus, memory_mib=want.memory_mib) or _find_lack_of_room(have, want)
    ) is not None:
        return lack
    if (have.cpus, have.memory_mib) == (want.cpus, want.memory_mib):
        return Match.EXACT
    return Match.LARGER if have.cpus > want.cpus or have.memory_mib > want.memory_mib else Match.GROWN


def _find_lack_of_room(have: Hardware, want: VMConfig) -> Lack | None:
    """The room to grow that is wanted and that a machine of `have` has not. More room than wanted is no lack."""
    match find_lack(have, cpus=want.max_cpus, memory_mib=want.max_memory_mib):
        case Lack.CPUS:
            return Lack.CPU_ROOM
        case Lack.MEMORY:
            return Lack.MEMORY_ROOM
    return None


def _cost(have: Hardware, want: VMConfig) -> tuple[int, int]:
    return abs(want.cpus - have.cpus), abs(want.memory_mib - have.memory_mib)
