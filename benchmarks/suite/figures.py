"""What a measurement leaves, and which figures and pictures are made of that. Values; nothing runs here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["ratio", "difference", "value"]
PlotKind = Literal["bars", "stack", "distribution", "line"]
# One turn of one side: its sample, or several by name.
Side = Callable[[], Awaitable[float | Mapping[str, float]]]

# Between the name of a side and where it stands on an axis: `fork@16`.
AT = "@"


class NotRun(Exception):
    """A measurement, or a side of one, cannot be had on this host; the message says why, for the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure must be: not above `at_most`, not below `at_least`."""

    at_most: float | None = None
    at_least: float | None = None

    def is_met_by(self, value: float) -> bool:
        return self.missed_by(value) == 0.0

    def missed_by(self, value: float) -> float:
        """The share of the target that `value` is beyond it; 0 when it is met."""
        if self.at_most is not None and value > self.at_most:
            return (value - self.at_most) / self.at_most if self.at_most else value
        if self.at_least is not None and value < self.at_least:
            return (self.at_least - value) / self.at_least
        return 0.0

    def __str__(self) -> str:
        if self.at_most is not None and self.at_least is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure made of samples. `ratio`: `of` over `to`; `difference`: `of` minus `to`; `value`: `of` alone.

    `scale` turns the samples' unit into `unit`; a ratio has neither. `bounds` says what keeps it from being better: it
    is printed where the target is missed.
    """

    key: str
    text: str
    kind: Kind
    of: str
    to: str = ""
    statistic: str = "median"
    to_statistic: str = ""
    unit: str = ""
    scale: float = 1.0
    target: Target | None = None
    bounds: str = ""
    smaller_is_better: bool = True

    def sides(self) -> tuple[str, ...]:
        return (self.of, self.to) if self.to else (self.of,)


def milliseconds(key: str, text: str, *, of: str) -> Row:
    """The figure that shows the median of `of`, which was measured in seconds."""
    return Row(key=key, text=text, kind="value", of=of, unit="ms", scale=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A picture of samples. `sides` name what is drawn, with the label of each.

    `bars`: medians beside each other; `stack`: on top of each other; `distribution`: how many samples are at or below
    each value; `line`: the medians of all sides `NAME@X` along X, which is logarithmic where `log_x`.
    """

    name: str
    title: str
    kind: PlotKind
    sides: Mapping[str, str]
    y: str
    x: str = ""
    scale: float = 1.0
    log_x: bool = False
    log_y: bool = False


@dataclass(slots=True)
class Samples:
    """What a measurement saw, by side, in its unit; and the sides that could not be had, with the reason."""

    sides: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rounds: int = 0
    wanted_rounds: int = 0

    def add(self, side: str, value: float) -> None:
        self.sides.setdefault(side, []).append(value)

    def skip(self, side: str, reason: str) -> None:
        self.skipped[side] = reason


def at(name: str, position: float) -> str:
    """The side of `name` that stands at `position` on the axis."""
    return f"{name}{AT}{position:g}"
