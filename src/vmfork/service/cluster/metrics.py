"""What the nodes of a cluster tell of themselves, as Prometheus reads it: one series a node, by the label `node`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vmfork.cluster.node import COUNTS
from vmfork.service.base.metrics import Registry
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

_PREFIX = "vmfork_node_"

_GAUGES = {
    "machines": "Machines of the cluster that run there.",
    "pooled": "Machines that are kept ready for whoever asks.",
    "being_made": "Machines that are being made.",
    "waiting": "Callers that wait for room.",
    "templates": "Templates that are in force.",
    "load": "Tasks that want a processor, for each processor.",
}
_TOLD = {
    "forks": "Machines that were made.",
    "forks_failed": "Machines that could not be made.",
    "fork_seconds": "Seconds that machines made from templates took together.",
    "from_pool": "Machines that were ready when they were asked for.",
    "programs": "Programs and code that were run.",
    "pulls": "Templates that were asked of other nodes.",
    "sent_bytes": "Bytes of templates that were given to other nodes.",
}
assert {*COUNTS} == {*_TOLD}


class NodeMetrics(Collector):
    """`told` is what `Cluster.status` gave. Counters begin at zero where a node's process does."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._nodes = told["nodes"]
        self._missing = told["missing"]
        self.registry = Registry(_PREFIX)
        self.registry.collect_from(self)

    def collect(self) -> Iterator[Metric]:
        """All nodes; called by the registry."""
        ready = GaugeMetricFamily(f"{_PREFIX}ready", "Whether machines are placed there now.", labels=["node"])
        memory = GaugeMetricFamily(
            f"{_PREFIX}memory_bytes",
            "Memory: all there is, and what can still be promised to machines.",
            labels=["node", "kind"],
        )
        for node in self._nodes:
            ready.add_metric([node["name"]], float(node["state"] == "ready"))
            for kind in ("total", "to_give"):
                memory.add_metric([node["name"], kind], node[f"{kind}_mib"] * MIB)
        for name in self._missing.keys() - {node["name"] for node in self._nodes}:
            ready.add_metric([name], 0.0)
        yield ready
        yield memory
        for name, told in _GAUGES.items():
            gauge = GaugeMetricFamily(_PREFIX + name, told, labels=["node"])
            for node in self._nodes:
                gauge.add_metric([node["name"]], node[name])
            yield gauge
        for name, told in _TOLD.items():
            counter = CounterMetricFamily(_PREFIX + name, told, labels=["node"])
            for node in self._nodes:
                counter.add_metric([node["name"]], node["counts"].get(name, 0))
            yield counter
