"""A template to a registry on the loopback and back, against zstd on its RAM; of a child, what is sent of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import time
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.suite.figures import NotRun, Row, Samples, Target
from benchmarks.suite.measure import Measure
from benchmarks.suite.measures.travel import write_allocated, zstd
from vmfork.api.template import Template
from vmfork.store import TemplateStore
from vmfork.store.ram_file import PAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from benchmarks.suite.context import Context

_COPY, _CHILD = "pulled", "pushed-child"
# What a child's fork did: a few megabytes of modules, as a warm-up does.
_WARM_UP = "import json, email, http.client, decimal, asyncio"
_CONFIG = """version: 0.1
log: {{level: info}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def _find(program: str) -> str:
    """It is installed, or unpacked beside this Python as the tests have it."""
    path = f"{os.environ.get('PATH', os.defpath)}:{sys.prefix}/unpacked/usr/bin"
    if (found := shutil.which(program, path=path)) is None:
        raise NotRun(f"the program {program} is not installed")
    return found


@asynccontextmanager
async def _registry(folder: Path) -> AsyncIterator[str]:
    """What references begin with, while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(folder=folder / "blobs", port=port))
    process = await asyncio.create_subprocess_exec(
        _find("docker-registry"), "serve", str(config), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    while b"listening on" not in (line := await process.stdout.readline()):
        assert line, "the registry ended"
    reading = asyncio.ensure_future(process.stdout.read())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()
        await reading


def _count_changed(one: Template, other: Template, store: TemplateStore) -> int:
    """Bytes of the pages that differ."""
    changed = 0
    with store.open(one.name) as first, store.open(other.name) as second:
        for position in range(0, first.manifest.memory_bytes, 1 << 20):
            mine, theirs = (os.pread(each.memory_fd, 1 << 20, position) for each in (first, second))
            if mine != theirs:
                changed += sum(mine[at : at + PAGE] != theirs[at : at + PAGE] for at in range(0, 1 << 20, PAGE))
    return changed * PAGE


async def run(context: Context) -> Samples:
    template, store = await context.template(), TemplateStore(context.places.templates)
    folder = context.scratch("pushed")
    raw, packed, number = folder / "raw", folder / "raw.zst", count()
    program = _find("zstd")
    write_allocated(template, context, raw)
    async with _registry(folder) as host:

        async def push() -> float:
            """Into a repository that has nothing yet."""
            begun = time.perf_counter()
            await template.push(f"{host}/push/{next(number)}:1")
            return time.perf_counter() - begun

        async def pull() -> float:
            begun = time.perf_counter()
            pulled = await Template.pull(f"{host}/whole:1", _COPY, places=context.places)
            took = time.perf_counter() - begun
            await pulled.remove()
            return took

        async def push_child() -> dict[str, float]:
            async with await template.fork() as vm:
                await vm.exec(["python3", "-c", _WARM_UP], check=True)
                child = await vm.freeze(_CHILD)
            try:
                begun = time.perf_counter()
                pushed = await child.push(f"{host}/whole:child{next(number)}")
                took = time.perf_counter() - begun
                changed = await asyncio.to_thread(_count_changed, template, child, store)
            finally:
                await child.remove()
            return {"child": took, "child-sent": float(pushed.sent_bytes), "child-changed": float(changed)}

        await template.push(f"{host}/whole:1")
        sides = {
            "push": push,
            "pull": pull,
            "zstd": zstd(program, "-1", str(raw), "-o", str(packed)),
            "unzstd": zstd(program, "-d", str(packed), "-o", str(raw)),
            "push-child": push_child,
        }
        await sides["zstd"]()
        samples = Samples()
        await context.interleave(samples, sides, rounds=10, quick_rounds=3)
    return samples


MEASURE = Measure(
    name="pushed",
    title="Templates in registries",
    unit="s",
    run=run,
    budget_s=60.0,
    is_asked_for=True,
    rows=(
        Row(
            key="pushed.push",
            text="`template push`, 256 MiB, to where nothing of it is",
            kind="value",
            of="push",
            unit="s",
        ),
        Row(key="pushed.pull", text="`template pull` of it", kind="value", of="pull", unit="s"),
        Row(
            key="pushed.child",
            text="`template push` of a child that imported a few modules",
            kind="value",
            of="child",
            unit="s",
        ),
        Row(
            key="pushed.push-raw",
            text="speed of a push against `zstd -1` of what its RAM file holds",
            kind="ratio",
            of="zstd",
            to="push",
            target=Target(at_least=0.7),
            bounds="The registry writes to the disk and computes each digest again, on the same processors.",
            smaller_is_better=False,
        ),
        Row(
            key="pushed.pull-raw",
            text="speed of a pull against `zstd -1` of what its RAM file holds",
            kind="ratio",
            of="zstd",
            to="pull",
            target=Target(at_least=0.7),
            bounds="Every layer is compared with its digest, and the whole with what was frozen.",
            smaller_is_better=False,
        ),
        Row(
            key="pushed.pull-unzstd",
            text="speed of a pull against `zstd -d` of the same",
            kind="ratio",
            of="unzstd",
            to="pull",
            bounds="Every layer is compared with its digest, and the whole with what was frozen.",
            smaller_is_better=False,
        ),
        Row(
            key="pushed.child-sent",
            text="what is sent of a child against its changed pages",
            kind="ratio",
            of="child-sent",
            to="child-changed",
            target=Target(at_most=3),
            bounds="It is those pages, compressed, with their positions, and the documents.",
        ),
    ),
)
