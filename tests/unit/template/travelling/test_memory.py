"""However large a template is, it is saved, loaded, pushed and pulled within little memory of the process's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.registry import running_registry
from tests.unit.store.samples import fill
from tests.unit.template.sparse import FITS, MIB, find_traits
from vmfork.aio import Template
from vmfork.store import TemplateStore

pytestmark = pytest.mark.needs("qemu", "docker-registry", "oras")

# MiB of noise, which no packing makes smaller, and what a process may have beyond what it has once all is loaded. Three
# layers of 16 MiB are in work at once, each as it is, as it is packed, and as it is sent.
_CONTENT, _OWN = 256, 160

# What the kernel counts there is memory that is written and nobody else's: neither files nor a template's pages.
_WORK = """
import asyncio, os, resource, sys, threading
from pathlib import Path
from vmfork.aio import Template
from vmfork.config import Places
from vmfork.hypervisor.qemu import find_qemu
from vmfork.hypervisor.qemu.abilities import ask_abilities
from vmfork.oci.registry import Repository  # is loaded before the limit

way, where, home, runtime, own = sys.argv[1:]
places = Places(home=Path(home), runtime=Path(runtime))
threading.stack_size(256 << 10)

async def work():
    await ask_abilities(await find_qemu(), kept=places.emulators)  # which the limit would be one of
    template = await Template.open("large", places=places) if way in ("save", "push") else None
    lines = Path("/proc/self/status").read_text().splitlines()
    have = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (have + (int(own) << 20),) * 2)
    if way in ("save", "push"):
        await getattr(template, way)(where)
    else:
        await getattr(Template, way)(where, way, places=places)

asyncio.run(work())
"""


@pytest.fixture
async def large(places) -> Template:
    store = TemplateStore(places.templates)
    async with await store.stage("large", memory_bytes=2 * _CONTENT * MIB) as staging:
        for number in range(_CONTENT):
            os.pwrite(staging.memory_fd, os.urandom(MIB), 2 * number * MIB)
        await staging.commit(fill(staging, traits=await find_traits(), **(FITS | {"memory_mib": 2 * _CONTENT})))
    return await Template.open("large", places=places)


def run(way: str, where: object, places, *, own: int = _OWN) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", _WORK, way, str(where), str(places.home), str(places.runtime), str(own)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


async def test_it_never_lies_in_memory_whole(large, build, places, other, tmp_path) -> None:
    """`build` removes what is made here."""
    assert run("save", tmp_path / "file", places, own=16).returncode  # the limit is one
    with running_registry(tmp_path / "registry") as registry:
        ref = f"{registry.host}/team/large:1"
        for way, where, at in (
            ("save", tmp_path / "file", places),
            ("push", ref, places),
            ("load", tmp_path / "file", other),
            ("pull", ref, other),
        ):
            done = run(way, where, at)
            assert done.returncode == 0, (way, done.stderr)
