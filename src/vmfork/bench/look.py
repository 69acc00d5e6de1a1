"""A quick look: a few forks of one template and the same forks by hand, in turns."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmfork.bench import raw
from vmfork.bench.fork import get_source, time_phases
from vmfork.bench.stats import bootstrap
from vmfork.errors import HostError
from vmfork.progress import Progress, ignore_progress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmfork.api.template import Template
    from vmfork.bench.stats import Estimate
    from vmfork.config import Places
    from vmfork.progress import ProgressListener

# After this time no further round begins: a look is over well within a minute, however slow the host is.
LIMIT_S = 30.0
# Fewer rounds than this have no interval worth showing.
_LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Look:
    """Seconds by side, one sample a round.

    `fork`: from nothing until the fork was handed out. `first_exec`: from nothing to the result of its first program.
    `raw`: the same as `first_exec`, by hand.
    """

    samples: Mapping[str, Sequence[float]]

    @property
    def rounds(self) -> int:
        return len(self.samples["raw"])

    def figures(self) -> Mapping[str, Estimate]:
        """The median of each side in seconds, as `SIDE_s`, and `ratio`: that of `first_exec` over that of `raw`."""
        figures = {
            f"{side}_s": bootstrap([values], lambda sides: statistics.median(sides[0]))
            for side, values in self.samples.items()
        }
        sides = [self.samples["first_exec"], self.samples["raw"]]
        return figures | {"ratio": bootstrap(sides, lambda s: statistics.median(s[0]) / statistics.median(s[1]))}


async def take_look(
    template: Template, *, places: Places, rounds: int, progress: ProgressListener = ignore_progress
) -> Look:
    """`rounds` forks were made by vmfork and as many by hand, and all of them ended; fewer when time ran out.

    The first round is not counted: it brings programs and files into memory. Raises `HostError` when the fork by hand
    fails, and what `Template.fork` raises.
    """
    source = await get_source(template, places=places)
    samples: dict[str, list[float]] = {"fork": [], "first_exec": [], "raw": []}

    async def with_vmfork() -> dict[str, float]:
        return await time_phases(template)

    async def by_hand() -> dict[str, float]:
        return {"raw": _time_raw(source)}

    end = time.monotonic() + LIMIT_S
    for number in range(rounds + 1):
        if number > _LEAST_ROUNDS and time.monotonic() > end:
            break
        step = f"round {number} of {rounds}" if number else "warming up"
        progress(Progress(task=f"bench {template.name}", step=step))
        # The second side finds the first one's pages in the caches, so the sides change places.
        for side in (with_vmfork, by_hand) if number % 2 else (by_hand, with_vmfork):
            for key, seconds in (await side()).items():
                if number > 0:
                    samples[key].append(seconds)
    return Look(samples)


def _time_raw(source: raw.Source) -> float:
    try:
        return raw.time_one(source)
    except (OSError, RuntimeError) as error:
        hint = "run vmfork bench without --template: the baseline may not know what this template has"
        raise HostError(f"the fork by hand failed: {error}", hint=hint) from error
