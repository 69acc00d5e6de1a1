"""All nodes' figures as Prometheus reads them, told apart by the label `node`."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.unit.cluster.fakes import FakeNode, FakeSite
from vmfork.cluster.cluster import Cluster
from vmfork.service.cluster.metrics import NodeMetrics


async def test_each_node_is_a_series() -> None:
    site = FakeSite(FakeNode("a"), FakeNode("b", strained="it has no time"))
    site.nodes["a"].counts = {"forks": 7, "fork_seconds": 1.5}
    async with Cluster(site) as cluster:
        vm = await cluster.fork("py", node="a")
        kind, text = NodeMetrics(await cluster.status()).registry.render()
        await vm.aclose()
    assert kind.startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation, family.name
        found |= {(each.name, *sorted(each.labels.values())): each.value for each in family.samples}
    for sample, value in {
        ("ready", "a"): 1,
        ("ready", "b"): 0,
        ("machines", "a"): 1,
        ("machines", "b"): 0,
        ("memory_bytes", "a", "total"): 10_000 << 20,
        ("memory_bytes", "a", "to_give"): 9_900 << 20,
        ("forks_total", "a"): 7,
        ("forks_total", "b"): 0,
        ("fork_seconds_total", "a"): 1.5,
    }.items():
        assert found[f"vmfork_node_{sample[0]}", *sample[1:]] == value, sample
