"""A client, and the other end of its line in the hands of the test."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.unit.agent.peer import Peer
from vmfork.agent.client import AgentClient
from vmfork.wire.frame import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def line() -> AsyncIterator[tuple[AgentClient, Peer]]:
    ours, theirs = socket.socketpair()
    async with await AgentClient.open(ours, protocol=PROTOCOL) as client:
        yield client, Peer(theirs)
    theirs.close()
