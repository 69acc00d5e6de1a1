"""One run: every measurement in turn, each within its part of the time. One that fails does not end the others."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import vmfork
from benchmarks.suite.context import MEMORY_MIB
from benchmarks.suite.figures import NotRun
from benchmarks.suite.result import FAILED, MeasureResult, RunResult, collect, judge
from vmfork.bench.machine import describe_machine
from vmfork.config import VMConfig
from vmfork.errors import VMForkError
from vmfork.image import ImageStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite.context import Context
    from benchmarks.suite.measure import Measure

# Bounds a whole run, whatever the measurements ask for; and one of what is in no whole run, which makes more first.
LIMIT_S = 840.0
ASKED_LIMIT_S = 1800.0
_QUICK_SHARE = 0.25


async def run_suite(context: Context, measures: Sequence[Measure]) -> RunResult:
    """The result of all `measures`. A measurement that cannot run here leaves rows that say why."""
    started, begun = datetime.now(UTC), time.monotonic()
    # If not even this template can be built, there is nothing to measure: that ends the run.
    template = await context.build(VMConfig(memory_mib=MEMORY_MIB))
    found: dict[str, MeasureResult] = {}
    is_asked_for = all(measure.is_asked_for for measure in measures)
    limit_s = ASKED_LIMIT_S if is_asked_for else LIMIT_S
    for measure in measures:
        left_s = limit_s - (time.monotonic() - begun)
        if left_s <= 0:
            status = f"the run's {limit_s / 60:g} minutes were over"
            found[measure.name] = MeasureResult(title=measure.title, unit=measure.unit, status=status)
            continue
        share = _QUICK_SHARE if context.quick else 1.0
        context.begin(measure.name, min(measure.budget_s * share, left_s))
        found[measure.name] = await _run_one(context, measure)
    manifest = template.manifest
    return RunResult(
        mode="quick" if context.quick else "default",
        started_at=started.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - begun, 1),
        machine=describe_machine(),
        versions={
            "vmfork": vmfork.__version__,
            "python": platform.python_version(),
            "qemu": manifest.traits["qemu.version"],
            "guest_kernel": ImageStore(context.places.images).open(manifest.image).kernel_release,
        },
        accel=manifest.traits["accel"],
        is_asked_for=is_asked_for,
        measures=found,
        rows=tuple(judge(measure, row, found[measure.name]) for measure in measures for row in measure.rows),
    )


async def _run_one(context: Context, measure: Measure) -> MeasureResult:
    begun = time.monotonic()
    try:
        return collect(measure, await measure.run(context), time.monotonic() - begun)
    except NotRun as error:
        status = str(error)
    except (VMForkError, OSError, RuntimeError) as error:
        status = f"{FAILED}{type(error).__name__}: {error}"
    return MeasureResult(
        title=measure.title, unit=measure.unit, status=status, duration_s=round(time.monotonic() - begun, 3)
    )
