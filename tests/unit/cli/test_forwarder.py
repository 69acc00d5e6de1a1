"""A process that is to be left behind, and does not come up."""

from __future__ import annotations

import subprocess

import pytest

from vmfork.cli import forwarder
from vmfork.errors import DeadlineExceeded, HostError
from vmfork.network.address import HostAddress

PORTS = [(HostAddress("127.0.0.1"), 80)]


@pytest.fixture
def spawned(monkeypatch):
    """What was started in its place: the script that a test sets."""
    processes = []

    def spawn(_arguments, writing: int) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(["sh", "-c", spawn.script], stdout=writing))
        return processes[-1]

    monkeypatch.setattr(forwarder, "_spawn", spawn)
    yield spawn, processes
    assert [process.returncode is not None for process in processes] == [True]


async def test_one_that_says_nothing_is_ended_in_the_end(spawned, monkeypatch) -> None:
    spawned[0].script = "exec sleep 300"
    monkeypatch.setattr(forwarder, "_LIMIT_S", 0.1)
    with pytest.raises(DeadlineExceeded, match="starting the process for vmfork forward"):
        await forwarder.leave_forwarder("vm", PORTS)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 1", "ended by itself"),
        ("""echo '{"error": {"code": "host", "message": "port 80 is taken", "hint": "take another"}}'""", "is taken"),
    ],
)
async def test_one_that_fails_says_of_what_and_has_ended(spawned, script: str, told: str) -> None:
    spawned[0].script = script
    with pytest.raises(HostError, match=told) as failed:
        await forwarder.leave_forwarder("vm", PORTS)
    assert failed.value.hint
