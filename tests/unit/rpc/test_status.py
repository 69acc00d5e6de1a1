"""A server's status across versions: fields are added, and a reader takes what it knows."""

from __future__ import annotations

import json

import pytest

from vmfork.errors import HostError
from vmfork.rpc.status import VERSION, MachineStatus, Phase, PoolStatus, ServerStatus

STATUS = ServerStatus(
    on=True,
    pid=7,
    version="1.2.3",
    state=Phase.SERVING,
    started_at="2026-01-01T00:00:00+00:00",
    endpoint="/run/cache.sock",
    cpus=1,
    memory_mib=256,
    traits={"accel": "tcg"},
    pool=PoolStatus(size=2, ready=1, dropped={"expired": 3}),
    vms=(MachineStatus(id="a", pid=8, cpus=1, memory_mib=256, age_s=1.5),),
    live=(MachineStatus(id="b", pid=9, cpus=1, memory_mib=256, age_s=2.5, client="process 3"),),
    metrics={"hits": 1},
)


def test_it_comes_back_as_it_was() -> None:
    assert ServerStatus.from_json(STATUS.to_json(), version=VERSION) == STATUS


def test_a_newer_servers_fields_are_passed_over_and_an_older_ones_are_defaults() -> None:
    told = json.loads(STATUS.to_json())
    del told["kind"], told["metrics"], told["pool"]["last_error"], told["vms"][0]["client"]
    told["state"] = "hibernating"
    told["weather"] = told["pool"]["weather"] = told["vms"][0]["weather"] = "fine"
    read = ServerStatus.from_json(json.dumps(told).encode(), version=VERSION)
    assert read.state == "hibernating"
    assert (read.kind, read.metrics, read.pool, read.vms) == ("", {}, STATUS.pool, STATUS.vms)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", STATUS.to_json().replace(b'"pid": 7, ', b"")],
    ids=["empty", "list", "nothing", "no-pid"],
)
def test_what_is_no_status_is_told_with_a_hint(data) -> None:
    with pytest.raises(HostError, match="status cannot be read") as caught:
        ServerStatus.from_json(data, version=VERSION)
    assert "same vmfork" in caught.value.hint


def test_another_version_is_refused_by_its_number() -> None:
    with pytest.raises(HostError, match=f"it has version 9, and this vmfork knows {VERSION}"):
        ServerStatus.from_json(STATUS.to_json(), version=9)
