"""What a factory was asked for and gave."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfork.factory.bases import Bases
    from vmfork.factory.held import CacheStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class FactoryStats:
    """Counts since the factory was made.

    `given` maps the name of a base, or `direct`, to how many VMs it gave. `choices` counts why a base was taken
    (`exact`, `grown`, `larger`), `fallbacks` why a VM was booted in place of coming from a base, `refused` why one
    got neither. `retries`: forks that were tried again. `quarantined`: bases that rest after failing, with their last
    error. `building`: the template is being built in the background; `build_error`: why the last such build failed.
    `cache`: what the pool holds; `pools`: the same of each, by the name of its base, where several templates have one.
    """

    requests: int
    from_base: int
    given: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, int] = field(default_factory=dict)
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    retries: int = 0
    quarantined: Mapping[str, str] = field(default_factory=dict)
    building: bool = False
    build_error: str = ""
    cache: CacheStatus | None = None
    pools: Mapping[str, CacheStatus] = field(default_factory=dict)


class Counts:
    """What is counted as it happens."""

    def __init__(self) -> None:
        self.requests = 0
        self.retries = 0
        self.given: Counter[str] = Counter()
        self.choices: Counter[str] = Counter()
        self.fallbacks: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def freeze(self, bases: Bases) -> FactoryStats:
        """The counts so far, and what `bases` are doing now."""
        return FactoryStats(
            requests=self.requests,
            from_base=sum(self.choices.values()),
            given=dict(self.given),
            choices=dict(self.choices),
            fallbacks=dict(self.fallbacks),
            refused=dict(self.refused),
            retries=self.retries,
            quarantined=dict(bases.resting),
            building=bases.is_building,
            build_error=bases.build_error,
            cache=next(iter(bases.pools.values()), None),
            pools=dict(bases.pools),
        )
