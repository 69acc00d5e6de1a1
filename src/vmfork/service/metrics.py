"""What the server counts, in a registry of its own: one source for Prometheus and for `factory status --json`."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from vmfork.host.memory import read_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric
    from prometheus_client.samples import Sample

_PREFIX = "vmfork_cache_"

# spawn: QEMU was started. load: the machine was up, its state loaded or its kernel booted. wait: a caller waited.
# hand_over: it was made ready to be taken over. What comes after is told by whoever took it.
PHASES = ("spawn", "load", "wait", "hand_over", "adopt", "fit", "first_exec")
REPORTED = PHASES[4:]
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5.0, 10.0, 30.0)

# Reasons come from clients, and each makes a series that stays: beyond so many they are counted together.
_REASON_LIMIT = 32
_REASON_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The pool and what was given out, at one moment. Memory in bytes, over the machines held and given out."""

    size: int = 0
    ready: int = 0
    refilling: int = 0
    waiting: int = 0
    hits: int = 0
    misses: int = 0
    failed: int = 0
    given: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    live: int = 0
    refused: int = 0
    shared: int = 0
    private: int = 0


class Metrics(Collector):
    """Counters and histograms, and the last snapshot of what is counted elsewhere."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.snapshot = Snapshot()
        self.taken_back = self._counter("taken_back", "Machines ended because their taker went before the answer.")
        self._fallbacks = self._counter("fallbacks", "Requests not served from the pool.", "reason")
        self._phases = Histogram(
            f"{_PREFIX}phase_seconds",
            "Seconds by phase of making and handing out a machine.",
            ["phase"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        for phase in PHASES:
            self._phases.labels(phase)
        self._reasons: set[str] = set()
        self.registry.register(self)

    def observe(self, phase: str, seconds: float) -> None:
        """A phase took so long. Impossible times, which a client may send, are left out."""
        if phase in PHASES and math.isfinite(seconds) and seconds >= 0:
            self._phases.labels(phase).observe(seconds)

    def fall_back(self, reason: str) -> None:
        """A request was not served from the pool."""
        reason = reason[:_REASON_SIZE]
        if reason not in self._reasons and len(self._reasons) >= _REASON_LIMIT:
            reason = "other"
        self._reasons.add(reason)
        self._fallbacks.labels(reason).inc()

    def collect(self) -> Iterator[Metric]:
        """The snapshot as metrics; called by the registry."""
        now = self.snapshot
        for name, told, value in (
            ("pool_size", "Machines the pool is to hold.", now.size),
            ("pool_ready", "Machines ready to be taken.", now.ready),
            ("pool_refilling", "Machines being made.", now.refilling),
            ("waiting", "Callers that wait for a machine.", now.waiting),
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
            ("given", "Machines given out.", now.given),
            ("hits", "Takes that found a machine ready.", now.hits),
            ("misses", "Takes that had to wait for a machine.", now.misses),
            ("failed", "Machines that could not be made.", now.failed),
            ("refused_connections", "Connections of other users.", now.refused),
        ):
            yield CounterMetricFamily(_PREFIX + name, told, value=value)
        dropped = CounterMetricFamily(f"{_PREFIX}dropped", "Held machines that were ended.", labels=["reason"])
        for reason, count in now.dropped.items():
            dropped.add_metric([reason], count)
        yield dropped

    def numbers(self) -> dict[str, Any]:
        """The same as plain values: `{name: number}`, `{name: {label: number}}`, phases with count, sum, buckets."""
        found: dict[str, Any] = {}
        for family in self.registry.collect():
            samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            name = family.name.removeprefix(_PREFIX)
            if family.type == "histogram":
                found[name] = _by_phase(samples)
            elif samples and not samples[0].labels:
                found[name] = _plain(samples[0].value)
            else:
                found[name] = {next(iter(sample.labels.values())): _plain(sample.value) for sample in samples}
        return found

    def render(self) -> tuple[str, bytes]:
        """Content type and text, as Prometheus reads it."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, told, labels, registry=self.registry)


async def read_memory_of(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes of resident memory of these processes: shared with others, and their own. Who is gone counts nothing."""
    return await asyncio.to_thread(_sum_memory, [*pids])


def _sum_memory(pids: Sequence[int]) -> tuple[int, int]:
    shared = private = 0
    for pid in pids:
        with suppress(OSError):
            use = read_memory(pid)
            shared += use.rss - use.private
            private += use.private
    return shared, private


def _by_phase(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {phase: {"count": 0, "sum_s": 0.0, "buckets": {}} for phase in PHASES}
    for sample in samples:
        phase = found[sample.labels["phase"]]
        if sample.name.endswith("_bucket"):
            phase["buckets"][sample.labels["le"]] = int(sample.value)
        elif sample.name.endswith("_count"):
            phase["count"] = int(sample.value)
        elif sample.name.endswith("_sum"):
            phase["sum_s"] = sample.value
    return found


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value
