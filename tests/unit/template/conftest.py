"""Two instances, and small templates in the first of them."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.unit.store.samples import fill
from tests.unit.template.sparse import CONTENT, FITS, MIB, find_traits
from vmfork.aio import Template
from vmfork.config import Places
from vmfork.store import TemplateStore


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(home=tmp_path / "home", runtime=tmp_path / "runtime")


@pytest.fixture
def other(tmp_path) -> Places:
    return Places(home=tmp_path / "other-home", runtime=tmp_path / "other-runtime")


@pytest.fixture
def build(places, other):
    async def build(name: str = "py", **changes) -> Template:
        store = TemplateStore(places.templates)
        async with await store.stage(name, memory_bytes=64 * MIB, replace=True) as staging:
            for position, data in CONTENT.items():
                os.pwrite(staging.memory_fd, data, position)
            manifest = fill(staging, **{"traits": await find_traits(), **FITS, **changes})
            await staging.commit(manifest)
        return await Template.open(name, places=places)

    yield build
    loop = asyncio.new_event_loop()
    for where in (places, other):
        store = TemplateStore(where.templates)
        for name in store.list_names():
            loop.run_until_complete(store.remove(name))
    loop.close()
