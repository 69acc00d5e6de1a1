"""A template into a file and out of it, against zstd on the bytes that its RAM has."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from typing import TYPE_CHECKING

from benchmarks.suite.figures import NotRun, Row, Samples, Target
from benchmarks.suite.measure import Measure
from vmfork.api.template import Template
from vmfork.store import TemplateStore
from vmfork.store.ram_file import find_extents

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.suite.context import Context
    from benchmarks.suite.figures import Side

_COPY = "travel"


def write_allocated(template: Template, context: Context, path: Path) -> None:
    """What its RAM file holds, without the holes."""
    with TemplateStore(context.places.templates).open(template.name) as opened, path.open("wb") as file:
        for start, end in find_extents(opened.memory_fd):
            file.write(os.pread(opened.memory_fd, end - start, start))


def zstd(program: str, *arguments: str) -> Side:
    async def work() -> float:
        begun = time.perf_counter()
        run = await asyncio.create_subprocess_exec(program, "-q", "-f", *arguments, env={})
        assert await run.wait() == 0
        return time.perf_counter() - begun

    return work


async def run(context: Context) -> Samples:
    program = shutil.which("zstd")
    if program is None:
        raise NotRun("the program zstd is not installed")
    template = await context.template()
    folder = context.scratch("travel")
    raw, packed, file = folder / "raw", folder / "raw.zst", folder / "template.tar"
    write_allocated(template, context, raw)

    async def save() -> float:
        begun = time.perf_counter()
        await template.save(file)
        return time.perf_counter() - begun

    async def load() -> float:
        begun = time.perf_counter()
        loaded = await Template.load(file, _COPY, places=context.places)
        took = time.perf_counter() - begun
        await loaded.remove()
        return took

    sides = {
        "save": save,
        "load": load,
        "zstd": zstd(program, "-1", str(raw), "-o", str(packed)),
        "unzstd": zstd(program, "-d", str(packed), "-o", str(raw)),
    }
    await sides["save"]()
    await sides["zstd"]()
    samples = Samples()
    await context.interleave(samples, sides, rounds=10, quick_rounds=3)
    return samples


MEASURE = Measure(
    name="travel",
    title="Templates in files",
    unit="s",
    run=run,
    budget_s=7.0,
    rows=(
        Row(key="travel.save", text="`template save`, 256 MiB", kind="value", of="save", unit="s"),
        Row(key="travel.load", text="`template load` of it", kind="value", of="load", unit="s"),
        Row(
            key="travel.save-raw",
            text="speed of a save against `zstd -1` of what its RAM file holds",
            kind="ratio",
            of="zstd",
            to="save",
            target=Target(at_least=0.7),
            bounds="It compresses on every processor, and compares all of the RAM with what was frozen meanwhile.",
            smaller_is_better=False,
        ),
        Row(
            key="travel.load-raw",
            text="speed of a load against `zstd -1` of what its RAM file holds",
            kind="ratio",
            of="zstd",
            to="load",
            target=Target(at_least=0.7),
            bounds="Every layer is compared with its digest, and the whole with what was frozen.",
            smaller_is_better=False,
        ),
        Row(
            key="travel.load-unzstd",
            text="speed of a load against `zstd -d` of the same",
            kind="ratio",
            of="unzstd",
            to="load",
            bounds="Every layer is compared with its digest, and the whole with what was frozen.",
            smaller_is_better=False,
        ),
    ),
)
