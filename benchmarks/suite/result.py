"""One run as a file: the machine, raw samples by side, the figures made of them, their targets and verdicts.

```
{"format": 1, "mode": "default", "is_asked_for": false, "started_at": "2026-01-31T12:00:00+00:00", "duration_s": 612.3,
 "machine":  {"cores", "memory_mib", "kernel", "cpu", "load"},
 "versions": {"vmfork", "python", "qemu", "guest_kernel"},
 "accel": "tcg",
 "measures": {NAME: {"title", "unit", "status", "rounds", "wanted_rounds", "duration_s",
                     "samples": {SIDE: [number, ...]}, "skipped": {SIDE: reason}, "notes": [text]}},
 "rows": [{"key", "measure", "text", "kind", "unit", "of", "to", "statistic", "to_statistic", "scale", "value", "low",
           "high", "target", "verdict", "missed_by", "reason", "bounds", "smaller_is_better"}]}
```
`status` is empty, or why the measurement did not run. `verdict` is `reached`, `missed`, `not run`, or empty where there
is no target; `missed_by` is the share of the target. `low` and `high` are the bootstrap interval of `value`. The figure
is made of the samples of the sides `of` and `to`, so that a run can be judged anew from its file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003 - a record's types are looked up when it is read
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from benchmarks.suite.figures import Row, Samples, Target
from vmfork.bench.stats import STATISTICS, bootstrap
from vmfork.errors import ConfigError
from vmfork.host.folders import write_whole
from vmfork.records import VERSION, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.suite.measure import Measure

FORMAT = 1


# How the status begins of a measurement that went wrong; another's says what it lacks here.
FAILED = "failed: "


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureResult:
    """What one measurement left. `status` is empty, or why there is nothing."""

    title: str
    unit: str
    status: str = ""
    rounds: int = 0
    wanted_rounds: int = 0
    duration_s: float = 0.0
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def has_failed(self) -> bool:
        return self.status.startswith(FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One figure. `value`, `low` and `high` are `None` where it could not be had: `reason` says why."""

    key: str
    measure: str
    text: str
    kind: str
    unit: str
    of: str
    to: str = ""
    statistic: str = "median"
    to_statistic: str = ""
    scale: float = 1.0
    value: float | None = None
    low: float | None = None
    high: float | None = None
    target: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""
    missed_by: float = 0.0
    reason: str = ""
    bounds: str = ""
    smaller_is_better: bool = True

    def sides(self) -> tuple[str, ...]:
        return (self.of, self.to) if self.to else (self.of,)

    def get_target(self) -> Target | None:
        return Target(**self.target) if self.target else None

    @property
    def is_side_by_side(self) -> bool:
        """Whether it can be compared between two runs: both sides of it shared each run's noise."""
        return self.kind == "ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run of the suite. `is_asked_for`: of measurements that are in no whole run."""

    mode: str
    started_at: str
    duration_s: float
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    accel: str
    measures: Mapping[str, MeasureResult]
    rows: tuple[RowResult, ...]
    is_asked_for: bool = False
    format: int = field(default=FORMAT, metadata=VERSION)

    def row(self, key: str) -> RowResult | None:
        return next((row for row in self.rows if row.key == key), None)

    def write(self, path: Path) -> None:
        """The run is in `path`, whole."""
        write_whole(path, (json.dumps(asdict(self), indent=1, default=str) + "\n").encode(), mode=0o644)


def read_result(path: Path) -> RunResult:
    """The run in the file at `path`. Raises `ConfigError` for no run, and for one of another format."""
    try:
        return read_record(RunResult, path.read_bytes())
    except OSError as error:
        raise ConfigError("file", str(path), f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(
            "file",
            str(path),
            f"{path} is no whole result of a run: {error}",
            hint="make one: make bench, or python -m benchmarks.suite --json FILE",
        ) from error


def figure_of(row: Row | RowResult) -> Callable[[Sequence[Sequence[float]]], float]:
    """The function from the samples of a row's sides to its figure, in the row's unit."""
    first, second, scale = STATISTICS[row.statistic], STATISTICS[row.to_statistic or row.statistic], row.scale
    if row.kind == "value":
        return lambda sides: first(sides[0]) * scale
    if row.kind == "difference":
        return lambda sides: (first(sides[0]) - second(sides[1])) * scale
    return lambda sides: first(sides[0]) / second(sides[1])


def judge(measure: Measure, row: Row, result: MeasureResult) -> RowResult:
    """The row of a measurement that ran, or did not."""
    given = RowResult(
        key=row.key,
        measure=measure.name,
        text=row.text,
        kind=row.kind,
        unit=row.unit,
        **{name: getattr(row, name) for name in ("of", "to", "statistic", "to_statistic", "scale")},
        target={key: value for key, value in asdict(row.target).items() if value is not None} if row.target else {},
        bounds=row.bounds,
        smaller_is_better=row.smaller_is_better,
    )
    missing = [side for side in row.sides() if not result.samples.get(side)]
    if missing:
        reasons = [result.skipped[side] for side in missing if side in result.skipped]
        reason = result.status or "; ".join(dict.fromkeys(reasons)) or f"no samples of {', '.join(missing)}"
        return replace(given, verdict="not run", reason=reason)
    found = bootstrap([result.samples[side] for side in row.sides()], figure_of(row))
    missed_by = row.target.missed_by(found.value) if row.target else 0.0
    verdict = "" if row.target is None else "missed" if missed_by else "reached"
    return replace(given, value=found.value, low=found.low, high=found.high, verdict=verdict, missed_by=missed_by)


def collect(measure: Measure, samples: Samples, duration_s: float) -> MeasureResult:
    """What `measure` leaves in the file."""
    return MeasureResult(
        title=measure.title,
        unit=measure.unit,
        rounds=samples.rounds,
        wanted_rounds=samples.wanted_rounds,
        duration_s=round(duration_s, 3),
        samples={side: tuple(values) for side, values in samples.sides.items()},
        skipped=samples.skipped,
        notes=tuple(samples.notes),
    )
