"""A large template goes from node to node, and actors never hold much of it, nor Ray's stores for long."""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from tests.cluster.conftest import NAME, get_node, until
from vmfork.store import TemplateStore
from vmfork.store.ram_file import digest_ram
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.limit_s(900)]

_LAYER_MIB = 16
# So many layers are under way at once (tests/unit/cluster/test_transfer.py), each of which is there some times over:
# as it was read or came, as Ray's value, and as what is still to be let go.
_WINDOW_MIB = (min(len(os.sched_getaffinity(0)), 8) + 2) * _LAYER_MIB
_BOUND_MIB = 3 * _WINDOW_MIB
# More than the stores of both nodes have room for, 150 MiB each by `ray.cluster_utils`. What has passed Ray frees about
# once a second, so that they fill (272 and 288 MiB of 576 were seen); what is held longer would have to go to disk.
_SIZE_MIB = max(512, 3 * _BOUND_MIB)


class Peaks:
    """The most that the stores held together, and each process in memory of its own, in MiB, until `end`.

    And what was put into stores, and what they put out to disk for lack of room.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._before = {pid: _read_own_mib(pid) for pid in pids}
        self.before_mib, self._created, self._spilled = self.read_stores()
        self.grown_mib = dict.fromkeys(pids, 0.0)
        self.stored_mib = 0.0
        self.created_mib = 0.0
        self.spilled_mib = 0.0
        self.looks = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()
        _, created, spilled = self.read_stores()
        self.created_mib, self.spilled_mib = created - self._created, spilled - self._spilled

    def _look(self) -> None:
        while not self._ending.wait(0.01):
            self.stored_mib = max(self.stored_mib, self.read_stores()[0])
            for pid, before in self._before.items():
                self.grown_mib[pid] = max(self.grown_mib[pid], _read_own_mib(pid) - before)
            self.looks += 1

    @staticmethod
    def read_stores() -> tuple[float, float, float]:
        """MiB that all stores hold now, that were put into them since they began, and that went to disk from there."""
        ray, internal = import_module("ray"), import_module("ray._private.internal_api")
        alive = [(each["NodeManagerAddress"], each["NodeManagerPort"]) for each in ray.nodes() if each["Alive"]]
        stats = [internal.node_stats(*each, include_memory_info=False).store_stats for each in alive]
        used, created, spilled = (
            sum(getattr(each, name) for each in stats) / MIB
            for name in ("object_store_bytes_used", "cumulative_created_bytes", "spilled_bytes_total")
        )
        return used, created, spilled


def _read_own_mib(pid: int) -> float:
    """What the process has in memory that no file holds."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


async def test_a_template_of_any_size_passes_through_little_memory(cluster, nodes) -> None:
    source, target = nodes.names[:2]
    store = TemplateStore(nodes.places[source].templates)
    # RAM that no machine ever had, and that nothing can be compressed of: it travels, and is not forked.
    with store.open(NAME) as opened:
        like, state = opened.manifest, os.pread(opened.state_fd, opened.manifest.state_bytes, 0)
    async with await store.stage("large", memory_bytes=_SIZE_MIB * MIB) as staging:
        for at in range(0, _SIZE_MIB, _LAYER_MIB):
            os.pwrite(staging.memory_fd, os.urandom(_LAYER_MIB * MIB), at * MIB)
        staging.state_path.write_bytes(state)
        digest = digest_ram(staging.memory_path)
        of_it = {"name": "large", "generation": staging.generation, "memory_bytes": _SIZE_MIB * MIB}
        found = {"memory_sha256": digest.sha256, "memory_allocated_bytes": digest.allocated_bytes}
        await staging.commit(replace(like, memory_mib=_SIZE_MIB, max_memory_mib=_SIZE_MIB, **of_it, **found))
    there = TemplateStore(nodes.places[target].templates)
    try:
        told = await until(cluster, lambda told: "large" in {each["name"] for each in told["templates"]})
        named = next(each["digest"] for each in told["templates"] if each["name"] == "large")
        sent_before = get_node(told, source)["counts"]["sent_bytes"]
        await cluster._site.call(source, "artifact", named)  # packed before, in a memory that is not looked at
        pids = {"source": await nodes.find_pid(source), "target": await nodes.find_pid(target)}
        peaks = await asyncio.to_thread(Peaks, [*pids.values()])
        try:
            assert await cluster.prefetch("large", nodes=[target]) == [target]
        finally:
            await asyncio.to_thread(peaks.end)
        sent = get_node(await cluster.status(), source)["counts"]["sent_bytes"] - sent_before
        grown = {name: peaks.grown_mib[pid] for name, pid in pids.items()}
        shown = f"{_SIZE_MIB} MiB in {peaks.looks} looks: stores {peaks.stored_mib:.0f}, processes {grown}"
        print(shown)
        assert sent >= _SIZE_MIB * MIB
        assert peaks.created_mib >= _SIZE_MIB, shown  # it went through the store
        assert there.read_manifest("large").memory_sha256 == digest.sha256
        assert peaks.looks > 1
        assert peaks.stored_mib < _SIZE_MIB, shown
        assert peaks.spilled_mib == 0, shown
        assert max(grown.values()) <= _BOUND_MIB, shown
        await until(cluster, lambda _: peaks.read_stores()[0] <= peaks.before_mib + _LAYER_MIB)
    finally:
        for each in (store, there):
            if "large" in each.list_names():
                await each.remove("large")
