"""Datagrams to a supervisor that is a real socket."""

from __future__ import annotations

import os
import socket

import pytest

from vmfork.config.endpoint import parse_metrics_address
from vmfork.service.base.notify import notify
from vmfork.service.cache import serve


@pytest.fixture(params=["path", "abstract"])
def supervisor(request, tmp_path, monkeypatch):
    name = str(tmp_path / "n") if request.param == "path" else f"@vmfork-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiver


def read_all(receiver) -> list[str]:
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return found


def test_lines_arrive_together(supervisor) -> None:
    assert notify("READY=1", "STATUS=on")
    assert read_all(supervisor) == ["READY=1\nSTATUS=on"]


@pytest.mark.parametrize("address", ["", "nonsense", "/nowhere/at/all"])
def test_without_a_supervisor_nothing_happens(address) -> None:
    assert not notify("READY=1", environ={"NOTIFY_SOCKET": address})


async def test_a_service_tells_its_states_and_its_metrics(supervisor, endpoint, running_server) -> None:
    async with running_server(filled=0) as running:
        running.server.quit()  # this one only lends its pool
    server, pool = type(running.server)(endpoint, running.server.state.config, version="1"), type(running.pool)()
    await pool.fill()

    def on_change(state: str) -> None:
        if state == "serving":
            assert server.state.metrics_address.startswith("127.0.0.1:")
            server.quit()

    async def open_pool():
        return pool

    await serve(server, open_pool, metrics=parse_metrics_address("127.0.0.1:0"), on_change=on_change)
    assert read_all(supervisor) == [
        "STATUS=starting",
        f"READY=1\nSTATUS=serving at {endpoint}",
        "STOPPING=1\nSTATUS=draining",
    ]
