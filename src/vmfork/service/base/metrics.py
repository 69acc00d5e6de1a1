"""Counters and histograms in a registry of their own: one source for Prometheus and for a status in JSON."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from vmfork.host.memory import read_memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample

# From what a take costs (1 ms) to what a boot may cost under TCG.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.25, 2.5, 5.0, 10.0, 30.0)

# Each label that a client names makes a series that stays. Beyond this many, labels are counted together.
_LABEL_LIMIT = 32
_LABEL_SIZE = 64


class Registry:
    """Metrics of one server, all named `PREFIX...`. Not the process's own registry: two servers count apart."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._registry = CollectorRegistry()

    def counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(self._prefix + name, told, labels, registry=self._registry)

    def seconds(self, name: str, told: str, *, label: str, values: Sequence[str]) -> Histogram:
        """A histogram of durations. All `values` of its label are there from the start, at zero."""
        made = Histogram(self._prefix + name, told, [label], buckets=_BUCKETS, registry=self._registry)
        for value in values:
            made.labels(value)
        return made

    def collect_from(self, collector: Collector) -> None:
        """What `collector` gives is part of every reading."""
        self._registry.register(collector)

    def numbers(self) -> dict[str, Any]:
        """All of it as plain values, without the prefix.

        `{name: number}`; `{name: {label: number}}`; for a histogram `{name: {label: {count, sum_s, buckets}}}`.
        """
        found: dict[str, Any] = {}
        for family in self._registry.collect():
            samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            name = family.name.removeprefix(self._prefix)
            if family.type == "histogram":
                found[name] = _by_label(samples)
            elif samples and not samples[0].labels:
                found[name] = _plain(samples[0].value)
            else:
                found[name] = {next(iter(sample.labels.values())): _plain(sample.value) for sample in samples}
        return found

    def render(self) -> tuple[str, bytes]:
        """Content type and text, as Prometheus reads it."""
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)


class NamedCounter:
    """A counter by a label that clients name: however many names they make up, the number of series is bounded."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._names: set[str] = set()

    def count(self, name: str) -> None:
        name = name[:_LABEL_SIZE]
        if name not in self._names and len(self._names) >= _LABEL_LIMIT:
            name = "other"
        self._names.add(name)
        self._counter.labels(name).inc()


async def read_memory_of(pids: Iterable[int]) -> tuple[int, int]:
    """Bytes of resident memory of these processes: shared with others, and their own. Ended processes count nothing."""
    # In a thread: the kernel walks the page tables of each process.
    return await asyncio.to_thread(_sum_memory, [*pids])


def _sum_memory(pids: Sequence[int]) -> tuple[int, int]:
    shared = private = 0
    for pid in pids:
        with suppress(OSError):
            use = read_memory(pid)
            shared += use.rss - use.private
            private += use.private
    return shared, private


def _by_label(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for sample in samples:
        value = next(value for label, value in sample.labels.items() if label != "le")
        figures = found.setdefault(value, {"count": 0, "sum_s": 0.0, "buckets": {}})
        if sample.name.endswith("_bucket"):
            figures["buckets"][sample.labels["le"]] = int(sample.value)
        elif sample.name.endswith("_count"):
            figures["count"] = int(sample.value)
        elif sample.name.endswith("_sum"):
            figures["sum_s"] = sample.value
    return found


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value
