"""A store of this test's own with small templates in it, and the proof that nothing of it is left."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from tests.unit.store.probe import MEMORY_BYTES, STATE, descriptors_below, mounts_below
from vmfork.host import facts
from vmfork.store import Manifest, TemplateStore
from vmfork.store.ram_file import digest_ram

TRAITS = {
    "qemu.version": "7.2.22",
    "machine": "pc-q35-7.2",
    "accel": "tcg",
    "cpu_model": "max",
    "image.kernel": "aa",
    "image.initramfs": "bb",
    "kernel_args": "",
}


@pytest.fixture
def make_manifest():
    """A manifest that tells the truth of what was staged, but for `changes`."""

    def make(**changes) -> Manifest:
        fields = {
            "name": "one",
            "generation": "0123456789abcdef",
            "created_at": "2025-01-01T00:00:00+00:00",
            "image": "default",
            "cpus": 1,
            "memory_mib": 1,
            "traits": TRAITS,
            "agent_protocol": 1,
            "agent_version": "1",
            "vmgenid": True,
            "memory_bytes": MEMORY_BYTES,
            "memory_allocated_bytes": 4096,
            "memory_sha256": "cc",
            "state_bytes": len(STATE),
            "state_sha256": hashlib.sha256(STATE).hexdigest(),
            "host_boot_id": facts.boot_id(),
            "host_kernel": facts.kernel_release(),
            "qemu_path": "/usr/bin/qemu-system-x86_64",
            "qemu_stamp": "1",
            "warm_up": ("true",),
            "timings": {"boot_s": 1.5},
        }
        return Manifest(**{**fields, **changes})

    return make


@pytest.fixture
def fill(make_manifest):
    """RAM and state are written to a staging; gives the manifest of them. RAM begins with the generation's name."""

    def fill(staging, **changes) -> Manifest:
        os.pwrite(staging.memory_fd, staging.generation.encode(), 0)
        staging.state_path.write_bytes(STATE)
        digest = digest_ram(staging.memory_path)
        facts_of_it = {
            "name": staging.name,
            "generation": staging.generation,
            "memory_bytes": staging.memory_bytes,
            "memory_allocated_bytes": digest.allocated_bytes,
            "memory_sha256": digest.sha256,
        }
        return make_manifest(**{**facts_of_it, **changes})

    return fill


@pytest.fixture
def build(fill):
    """A template is in force; gives the name of its generation."""

    async def build(store, name="one", *, replace=False, memory_bytes=MEMORY_BYTES, wait_s=0.0, **changes) -> str:
        staging = await store.stage(name, memory_bytes=memory_bytes, replace=replace, wait_s=wait_s)
        async with staging:
            await staging.commit(fill(staging, **changes))
        return staging.generation

    return build


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
