"""A container image up to its root tree, beside the raw tool: `umoci unpack` of the same layout.

The image has three layers of gzip, 300 MiB of files in all, half of them random bytes, of sizes as programs and their
libraries have them. The raw tool writes each as a file; an import has them in a tree in memory and a file of contents.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.figures import NotRun, Row, Samples, Target
from benchmarks.suite.measure import Measure
from vmfork.api.image import Image
from vmfork.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.suite.context import Context
    from benchmarks.suite.figures import Side
    from vmfork.progress import Progress

_LAYERS = 3
_LAYER_MIB = 100
_NAME = "bench-container"
# Bytes of a file, and how many of that size are in a layer: most are small, most bytes are in large ones.
_SIZES = ((2 * MIB, 30), (200_000, 150), (12_000, 800))


def _find_umoci() -> str:
    beside = Path(sys.prefix) / "unpacked" / "usr" / "bin" / "umoci"
    found = shutil.which("umoci") or (str(beside) if beside.exists() else None)
    if found is None:
        raise NotRun("umoci is not there: make test brings it")
    return found


def _write_layer(path: Path, number: int) -> None:
    """A layer of files that compress to about the half, as programs do; the same bytes each time."""
    source = random.Random(number)  # noqa: S311
    with tarfile.open(path, "w") as tar:
        for size, count in _SIZES:
            for each in range(count):
                half = size // 2
                body = b"".join(source.randbytes(2048) + bytes(2048) for _ in range(half // 2048)) or bytes(size)
                member = tarfile.TarInfo(f"usr/lib/layer{number}/{size}/{each}")
                member.size, member.mode = len(body), 0o644
                tar.addfile(member, io.BytesIO(body))


def _make_layout(umoci: str, folder: Path) -> Path:
    layout = folder / "layout"
    image = f"{layout}:latest"

    def run(*argv: str) -> None:
        subprocess.run([umoci, *argv], check=True, capture_output=True)

    run("init", "--layout", str(layout))
    run("new", "--image", image)
    for number in range(_LAYERS):
        _write_layer(folder / "layer.tar", number)
        run("raw", "add-layer", "--image", image, str(folder / "layer.tar"))
    (folder / "layer.tar").unlink()
    return layout


def _importing(layout: Path, context: Context) -> Side:
    """The root tree was made, and the image too; both from the beginning."""

    async def import_it() -> dict[str, float]:
        times: list[float] = []

        def note(progress: Progress) -> None:
            if progress.step == "packing the image":  # the tree is whole
                times.append(time.perf_counter())

        begun = time.perf_counter()
        image = await Image.import_oci(f"oci:{layout}:latest", _NAME, progress=note, places=context.places)
        done = time.perf_counter()
        await image.remove()
        return {"tree": times[0] - begun, "image": done - begun}

    return import_it


def _unpacking(umoci: str, layout: Path, folder: Path) -> Callable[[], float]:
    def unpack() -> float:
        bundle = folder / "bundle"
        begun = time.perf_counter()
        rootless = [] if os.geteuid() == 0 else ["--rootless"]
        argv = [umoci, "unpack", *rootless, "--image", f"{layout}:latest", str(bundle)]
        subprocess.run(argv, check=True, capture_output=True)
        took = time.perf_counter() - begun
        shutil.rmtree(bundle)
        return took

    return unpack


async def run(context: Context) -> Samples:
    samples, umoci = Samples(), _find_umoci()
    with tempfile.TemporaryDirectory(prefix="vmfork-bench-", dir=context.places.home) as temporary:
        folder = Path(temporary)
        context.report("making the image")
        layout = await asyncio.to_thread(_make_layout, umoci, folder)
        unpack = _unpacking(umoci, layout, folder)
        sides = {"import": _importing(layout, context), "unpack": lambda: asyncio.to_thread(unpack)}
        await context.interleave(samples, sides, rounds=7, quick_rounds=3)
    return samples


_BOUNDS = "Tars are read by Python's tarfile, a call for each of the members."

MEASURE = Measure(
    name="container",
    title="Container images",
    unit="s",
    run=run,
    budget_s=90.0,
    is_asked_for=True,
    rows=(
        Row(key="container.tree", text="import of 300 MiB up to the root tree", kind="value", of="tree", unit="s"),
        Row(key="container.unpack", text="`umoci unpack` of the same", kind="value", of="unpack", unit="s"),
        Row(key="container.image", text="import of 300 MiB up to the image", kind="value", of="image", unit="s"),
        Row(
            key="container.raw",
            text="import up to the root tree, 300 MiB, against `umoci unpack`",
            kind="ratio",
            of="tree",
            to="unpack",
            target=Target(at_most=1.5),
            bounds=_BOUNDS,
        ),
    ),
)
