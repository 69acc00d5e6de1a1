"""Results made by hand for the tests of the benchmark suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.suite.figures import Plot, Row, Samples, Target, at
from benchmarks.suite.measure import Measure
from benchmarks.suite.result import RunResult, collect, judge


async def not_run(_context: Any) -> Samples:
    raise AssertionError


RATIO = Row(
    key="fork.ratio",
    text="fork, over raw",
    kind="ratio",
    of="fork",
    to="raw",
    target=Target(at_most=1.15),
    bounds="Python.",
)
TIME = Row(key="fork.time", text="fork", kind="value", of="fork", unit="ms", scale=1000)
MORE = Row(key="fork.more", text="fork, above raw", kind="difference", of="fork", to="raw", unit="ms", scale=1000)
PLOTS = (
    Plot(name="bars", title="bars", kind="bars", sides={"fork": "a fork", "raw": "by hand"}, y="ms", scale=1000),
    Plot(name="stack", title="stack", kind="stack", sides={"fork": "a fork", "raw": "by hand"}, y="ms", scale=1000),
    Plot(name="spread", title="spread", kind="distribution", sides={"fork": "a fork"}, x="ms", y="share", scale=1000),
    Plot(name="line", title="line", kind="line", sides={"many": "forks"}, x="count", y="ms", log_x=True, log_y=True),
    Plot(name="nothing", title="nothing", kind="bars", sides={"no such side": "nobody"}, y="ms"),
)
MEASURE = Measure(name="fork", title="A fork", unit="s", run=not_run, rows=(RATIO, TIME, MORE), plots=PLOTS)

RAW = (0.100, 0.101, 0.099, 0.102, 0.098, 0.100, 0.101, 0.099)
FORK = (0.110, 0.111, 0.109, 0.112, 0.108, 0.110, 0.111, 0.109)


def run_of(
    sides: Mapping[str, Sequence[float]] | None = None,
    *,
    measure: Measure = MEASURE,
    skipped: dict[str, str] | None = None,
) -> RunResult:
    """A run of one measurement that saw these samples; by default a fork of 110 ms over 100 ms by hand."""
    if sides is None:
        sides = {"fork": FORK, "raw": RAW, at("many", 1): [0.1], at("many", 16): [0.9, 1.0]}
    samples = Samples(sides={side: [*values] for side, values in sides.items()}, rounds=8, wanted_rounds=8)
    samples.skipped.update(skipped or {})
    found = collect(measure, samples, 1.5)
    return RunResult(
        mode="default",
        started_at="2026-01-31T12:00:00+00:00",
        duration_s=90.0,
        machine={"cores": 2, "memory_mib": 16000, "kernel": "6.1", "cpu": "a CPU", "load": 0.1},
        versions={"vmfork": "0.1.0", "python": "3.11.2", "qemu": "7.2.22 (Debian)", "guest_kernel": "6.12"},
        accel="tcg",
        measures={measure.name: found},
        rows=tuple(judge(measure, row, found) for row in measure.rows),
    )


def slower(factor: float) -> Mapping[str, Sequence[float]]:
    return {"fork": [value * factor for value in FORK], "raw": RAW}
