"""Small templates, whole and described truly, for tests of what holds templates."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from tests.unit.store.probe import MEMORY_BYTES, STATE
from vmfork.host import facts
from vmfork.store import Manifest
from vmfork.store.ram_file import digest_ram

if TYPE_CHECKING:
    from vmfork.store import Staging, TemplateStore

TRAITS = {
    "qemu.version": "7.2.22",
    "machine": "pc-q35-7.2",
    "accel": "tcg",
    "cpu_model": "max",
    "image.kernel": "aa",
    "image.initramfs": "bb",
    "kernel_args": "",
}


def make_manifest(**changes) -> Manifest:
    """A manifest that tells the truth of what was staged, but for `changes`."""
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


def fill(staging: Staging, **changes) -> Manifest:
    """RAM and state are written to a staging; gives the manifest of them. RAM begins with the generation's name."""
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


async def build_small(
    store: TemplateStore,
    name: str = "one",
    *,
    replace: bool = False,
    memory_bytes: int = MEMORY_BYTES,
    wait_s: float = 0.0,
    **changes,
) -> str:
    """A template is in force; gives the name of its generation."""
    async with await store.stage(name, memory_bytes=memory_bytes, replace=replace, wait_s=wait_s) as staging:
        await staging.commit(fill(staging, **changes))
    return staging.generation
