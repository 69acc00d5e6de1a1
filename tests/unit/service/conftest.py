"""A server over a stand-in pool, at a socket of its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from tests.unit.service.stand_in import StandInPool
from vmfork.config import VMConfig
from vmfork.rpc.client import CacheClient
from vmfork.service.cache import CacheServer
from vmfork.service.cache.pools import Pools


class Running:
    """A server that runs as a task, the pool it gives from, and the states it told."""

    def __init__(self, endpoint, *others: StandInPool) -> None:
        self.others = others
        self.server = CacheServer(endpoint, VMConfig(), version="1.2.3")
        self.pool = StandInPool()
        self.states: list[str] = []
        self.changed = asyncio.Condition()
        self.task = asyncio.create_task(self.server.run(self.open_pools, on_change=self.states.append))

    async def open_pools(self) -> Pools:
        return Pools([self.pool, *self.others])

    async def wait_for(self, state: str) -> None:
        async with asyncio.timeout(30):
            while state not in self.states:
                assert not self.task.done(), self.task.exception()
                await asyncio.sleep(0)


@pytest.fixture
def endpoint(tmp_path):
    return tmp_path / "run" / "cache.sock"


@pytest.fixture
def running_server(endpoint):
    @asynccontextmanager
    async def run(*others: StandInPool, filled: int = 1):
        running = Running(endpoint, *others)
        await running.wait_for("starting")
        if filled:
            for pool in (running.pool, *others):
                await pool.fill(filled)
            await running.wait_for("serving")
        try:
            yield running
        finally:
            running.server.quit()
            await asyncio.wait_for(running.task, 30)

    return run


@pytest.fixture
async def client(endpoint):
    async with CacheClient(endpoint) as client:
        yield client
