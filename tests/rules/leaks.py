"""A test leaves nothing: no descriptor, process, mount or machine's folder. The one that does fails, by name."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rules.traces import Traces, kill, look
from vmfork.rpc.client import CacheClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfork.config import Places

# Some end a little after their owner: a keeper, a command's last child, gRPC's threads. Nothing tells when all have;
# it takes seconds on a busy host.
GRACE_S = 30.0
_PAUSE_S = 0.02


@pytest.fixture(scope="session", autouse=True)
def grpc_runtime() -> None:
    """It stays for good once it was used: what it has is there before the first test is looked at."""

    async def use() -> None:
        async with CacheClient(Path("none")):
            pass

    asyncio.run(use())


@pytest.fixture(autouse=True)
def nothing_left(
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    instance: Places,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Looked at before all other fixtures of the test and after them; what lives longer than a test is there before."""
    folders = (instance.runtime, tmp_path_factory.getbasetemp())
    everywhere = request.node.get_closest_marker("vm") is not None

    def look_here() -> Traces:
        return look(instance.vms, folders=folders, marked=instance.runtime if everywhere else None)

    before = look_here()
    yield
    # All other fixtures have ended. What they gave, and what was logged, pytest would keep until after this; an error
    # in a log record keeps all that was in its frames, such as a channel of gRPC's.
    request.node.funcargs.clear()
    for phase in ("setup", "call"):
        caplog.get_records(phase).clear()
    left, end = look_here() - before, 0.0
    while left and (not end or time.monotonic() < end):
        if not end:
            gc.collect()
            end = time.monotonic() + GRACE_S
        else:
            time.sleep(_PAUSE_S)
        left = look_here() - before
    if left:
        told = str(left)
        kill(left.processes)
        pytest.fail(f"the test left behind:\n{told}", pytrace=False)
