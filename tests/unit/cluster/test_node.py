"""What a node keeps for programs, without an engine and without machines."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from vmfork.cluster import node
from vmfork.cluster.node import Node
from vmfork.config import Places
from vmfork.errors import VMNotFound

if TYPE_CHECKING:
    from pathlib import Path


def list_spools() -> list[str]:
    """What was spooled, as descriptors of this process; others of the run have their own."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return [path for link in links if os.path.lexists(link) and "vmfork-cluster-" in (path := os.readlink(link))]


async def open_node(folder: Path) -> Node:
    return await Node.open("one", {}, labels={}, places=Places(home=folder / "home", runtime=folder / "run"))


async def test_what_was_spooled_goes_with_the_put_that_takes_it(tmp_path) -> None:
    async with await open_node(tmp_path) as one:
        await one.spool("token", b"a")
        await one.spool("token", b"b")
        assert len(list_spools()) == 1
        with pytest.raises(VMNotFound):
            await one.put("gone", "token", "/", {})
        assert not list_spools()


async def test_what_nobody_sends_the_rest_of_is_dropped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(node, "_LOOK_EVERY_S", 0.01)
    async with await open_node(tmp_path) as one:
        await one.spool("kept", b"a")
        monkeypatch.setattr(node, "LEASE_S", 0.0)
        await one.spool("left", b"a")
        while len(list_spools()) > 1:
            await asyncio.sleep(0.01)
        await one.spool("kept", b"b")
    assert not list_spools()
