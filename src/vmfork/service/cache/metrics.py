"""What a cache server counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vmfork.rpc.status import PoolStatus
from vmfork.service.base.metrics import NamedCounter, Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

_PREFIX = "vmfork_cache_"

# spawn: QEMU was started. load: the machine was up, its state loaded or its kernel booted. wait: a caller waited.
# hand_over: it was made ready to be taken over. The later phases are reported by the taker.
PHASES = ("spawn", "load", "wait", "hand_over", "adopt", "fit", "first_exec")
REPORTED = PHASES[4:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The pool and what was given out, at one moment. Memory in bytes, over the machines held and given out."""

    pool: PoolStatus = field(default_factory=PoolStatus)
    live: int = 0
    refused: int = 0
    shared: int = 0
    private: int = 0


class Metrics(Collector):
    """Counters and histograms, and the last snapshot of what is counted elsewhere."""

    def __init__(self) -> None:
        self.registry = Registry(_PREFIX)
        self.snapshot = Snapshot()
        counter = self.registry.counter
        self.taken_back = counter("taken_back", "Machines ended because their taker went before the answer.")
        self.fallbacks = NamedCounter(counter("fallbacks", "Requests not served from the pool.", "reason"))
        self._phases = self.registry.seconds(
            "phase_seconds", "Seconds by phase of making and handing out a machine.", label="phase", values=PHASES
        )
        self.registry.collect_from(self)

    def observe(self, phase: str, seconds: float) -> None:
        """The phase took `seconds`. Impossible times, which a client may send, are left out."""
        if phase in PHASES and math.isfinite(seconds) and seconds >= 0:
            self._phases.labels(phase).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """The snapshot as metrics; called by the registry."""
        now, pool = self.snapshot, self.snapshot.pool
        for name, told, value in (
            ("pool_size", "Machines the pool is to hold.", pool.size),
            ("pool_ready", "Machines ready to be taken.", pool.ready),
            ("pool_refilling", "Machines being made.", pool.refilling),
            ("waiting", "Callers that wait for a machine.", pool.waiting),
            ("live_vms", "Machines given out that still run.", now.live),
        ):
            yield GaugeMetricFamily(_PREFIX + name, told, value=value)
        memory = GaugeMetricFamily(
            f"{_PREFIX}memory_bytes",
            "Resident memory of all machines: shared, or their own.",
            labels=["kind"],
        )
        memory.add_metric(["shared"], now.shared)
        memory.add_metric(["private"], now.private)
        yield memory
        for name, told, value in (
            ("given", "Machines given out.", pool.given),
            ("hits", "Takes that found a machine ready.", pool.hits),
            ("misses", "Takes that had to wait for a machine.", pool.misses),
            ("failed", "Machines that could not be made.", pool.failed),
            ("refused_connections", "Connections of other users.", now.refused),
        ):
            yield CounterMetricFamily(_PREFIX + name, told, value=value)
        dropped = CounterMetricFamily(f"{_PREFIX}dropped", "Held machines that were ended.", labels=["reason"])
        for reason, count in pool.dropped.items():
            dropped.add_metric([reason], count)
        yield dropped
