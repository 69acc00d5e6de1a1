"""Metrics as Prometheus reads them, and where they can be read."""

from __future__ import annotations

import asyncio
import os

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vmfork.config.endpoint import MetricsAddress, parse_metrics_address
from vmfork.errors import HostError, StoreBusy
from vmfork.rpc.status import PoolStatus
from vmfork.service.base.exposition import Exposition
from vmfork.service.base.metrics import read_memory_of
from vmfork.service.cache.metrics import PHASES, Metrics, Snapshot


def families(text: str) -> dict[str, dict]:
    found = {}
    for family in text_string_to_metric_families(text):
        found[family.name] = {(s.name, *s.labels.values()): s.value for s in family.samples}
        assert family.documentation, family.name
        assert family.name.startswith("vmfork_cache_")
    return found


async def request(address: str, line: str = "GET /metrics HTTP/1.1") -> tuple[str, str]:
    if address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(f"{line}\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 60)).decode().partition("\r\n\r\n")
    writer.close()
    return head, body


def test_the_text_parses_and_says_what_was_counted() -> None:
    metrics = Metrics()
    for seconds in (0.003, 0.03, 0.3):
        metrics.observe("adopt", seconds)
    metrics.fallbacks.count("cpus")
    pool = PoolStatus(size=4, ready=3, hits=7, misses=2, given=9, dropped={"unhealthy": 2})
    metrics.snapshot = Snapshot(pool=pool, shared=5, private=6)
    kind, text = metrics.registry.render()
    found = families(text.decode())
    assert kind.startswith("text/plain")
    for name, sample, value in (
        ("hits", ("hits_total",), 7),
        ("misses", ("misses_total",), 2),
        ("fallbacks", ("fallbacks_total", "cpus"), 1),
        ("dropped", ("dropped_total", "unhealthy"), 2),
        ("pool_ready", ("pool_ready",), 3),
        ("memory_bytes", ("memory_bytes", "shared"), 5),
        ("memory_bytes", ("memory_bytes", "private"), 6),
        ("phase_seconds", ("phase_seconds_count", "adopt"), 3),
    ):
        assert found[f"vmfork_cache_{name}"][(f"vmfork_cache_{sample[0]}", *sample[1:])] == value, name
    assert {key[-1] for key in found["vmfork_cache_phase_seconds"]} == set(PHASES)


def test_the_plain_numbers_are_the_same() -> None:
    metrics = Metrics()
    metrics.observe("fit", 0.5)
    metrics.fallbacks.count("memory_mib")
    metrics.snapshot = Snapshot(pool=PoolStatus(hits=1, dropped={"expired": 3}), private=10)
    numbers = metrics.registry.numbers()
    assert (numbers["hits"], numbers["fallbacks"], numbers["dropped"]) == (1, {"memory_mib": 1}, {"expired": 3})
    assert numbers["memory_bytes"] == {"shared": 0, "private": 10}
    fit = numbers["phase_seconds"]["fit"]
    assert (fit["count"], fit["sum_s"], fit["buckets"]["0.32"], fit["buckets"]["0.64"]) == (1, 0.5, 0, 1)


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.fallbacks.count("x")
    assert (one.registry.numbers()["fallbacks"], other.registry.numbers()["fallbacks"]) == ({"x": 1}, {})


async def test_memory_is_that_of_the_processes() -> None:
    shared, private = await read_memory_of([os.getpid(), 2**22 + 1])
    assert shared > 0
    assert private > 1_000_000


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_metrics_are_read_over_http(tmp_path, kind) -> None:
    metrics = Metrics()

    async def render():
        return metrics.registry.render()

    path = tmp_path / "run" / "m.sock"
    exposition = Exposition(parse_metrics_address("127.0.0.1:0" if kind == "tcp" else f"unix:{path}"), render)
    await exposition.open()
    try:
        head, body = await request(exposition.address)
        assert head.startswith("HTTP/1.1 200")
        assert f"Content-Length: {len(body)}" in head
        assert "vmfork_cache_pool_ready" in families(body)
        assert (await request(exposition.address, "GET /other HTTP/1.1"))[0].startswith("HTTP/1.1 404")
        assert (await request(exposition.address, "POST /metrics HTTP/1.1"))[0].startswith("HTTP/1.1 405")
        assert (await request(exposition.address, "HEAD /metrics HTTP/1.1"))[1] == ""
        assert (await request(exposition.address, "x" * 70_000))[0] == ""
        if kind == "unix":
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(StoreBusy):
                await Exposition(parse_metrics_address(f"unix:{path}"), render).open()
        else:
            port = int(exposition.address.rpartition(":")[2])
            with pytest.raises(HostError, match="in use") as told:
                await Exposition(MetricsAddress(host="127.0.0.1", port=port), render, setting="--serve").open()
            assert told.value.hint == "name another address: --serve"
    finally:
        await exposition.aclose()
    if kind == "unix":
        assert list(path.parent.iterdir()) == []
