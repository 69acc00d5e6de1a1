"""A store of this test's own with small templates in it, and the proof that nothing of it is left."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.store import samples
from tests.unit.store.probe import descriptors_below, mounts_below
from vmfork.store import TemplateStore


@pytest.fixture
def make_manifest():
    return samples.make_manifest


@pytest.fixture
def fill():
    return samples.fill


@pytest.fixture
def build():
    return samples.build_small


@pytest.fixture
def store(tmp_path):
    store = TemplateStore(tmp_path / "runtime" / "templates")
    yield store
    loop = asyncio.new_event_loop()
    for name in store.list_names():
        loop.run_until_complete(store.remove(name))
    loop.close()
    left = list(store.folder.iterdir()) if store.folder.exists() else []
    assert (left, mounts_below(tmp_path), descriptors_below(tmp_path)) == ([], [], [])
