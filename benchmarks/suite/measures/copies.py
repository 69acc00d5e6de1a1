"""Files into a machine and out of it: a large one against the bare line, many small ones against tar through exec."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.suite.by_hand import line_of, read_file, write_file
from benchmarks.suite.figures import Row, Samples, Side, Target
from benchmarks.suite.measure import Measure

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.suite.context import Context

# The guest's files lie in its memory.
_MEMORY_MIB = 768
_LARGE, _QUICK_LARGE = 200 * 1000 * 1000, 10 * 1000 * 1000
_FOLDERS, _FILES, _QUICK_FILES, _SMALL = 100, 100, 5, 700


def _make_many(folder: Path, files: int) -> Path:
    tree = folder / "tree"
    for at in range(_FOLDERS):
        (tree / str(at)).mkdir(parents=True)
        for each in range(files):
            (tree / str(at) / str(each)).write_bytes(b"%d" % each * (_SMALL // 2))
    return tree


async def run(context: Context) -> Samples:
    context.check_memory(3 * _MEMORY_MIB)
    template = await context.template(memory_mib=_MEMORY_MIB)
    folder = context.scratch("copies")
    content = bytes(_QUICK_LARGE if context.quick else _LARGE)
    (folder / "large").write_bytes(content)
    samples = Samples()
    async with AsyncExitStack() as owned:
        own = await owned.enter_async_context(template.fork())

        async def put() -> float:
            begun = time.perf_counter()
            await own.put(folder / "large", "/root/large")
            return time.perf_counter() - begun

        async def get() -> float:
            begun = time.perf_counter()
            await own.get("/root/large", folder / "back")
            return time.perf_counter() - begun

        async def write() -> float:
            with line_of(own) as line:
                begun = time.perf_counter()
                write_file(line, "/root/large", content)
                return time.perf_counter() - begun

        async def read() -> float:
            with line_of(own) as line:
                begun = time.perf_counter()
                if read_file(line, "/root/large") != len(content):
                    raise RuntimeError("the guest's file is another one")
                return time.perf_counter() - begun

        large: dict[str, Side] = {"put": put, "raw-in": write}
        await context.interleave(samples, large, rounds=4, quick_rounds=2, warm_up=1)
        large = {"get": get, "raw-out": read}
        await context.interleave(samples, large, rounds=4, quick_rounds=2, warm_up=1)

    _make_many(folder, _QUICK_FILES if context.quick else _FILES)
    async with AsyncExitStack() as owned:
        alone = await owned.enter_async_context(template.start())
        owned.push_async_callback(alone.stop, grace_s=0)
        vmfork, environment = context.command(), context.environment()

        async def timed(script: str) -> float:
            begun = time.perf_counter()
            given = [alone.id, str(folder), *vmfork]
            subprocess.run(["sh", "-ec", script, "sh", *given], env=environment, check=True)  # noqa: ASYNC221
            return time.perf_counter() - begun

        def side(script: str, *, there: str = "", here: str = "") -> Side:
            """`script` takes the id, the folder and the command; what it made is removed before."""

            async def copy() -> float:
                if there:
                    await alone.shell(f"rm -rf {there}; mkdir {there}", check=True)
                if here:
                    shutil.rmtree(folder / here, ignore_errors=True)
                    (folder / here).mkdir()
                return await timed(f'id=$1; cd "$2"; shift 2; {script}')

            return copy

        small = {
            "cp-in": side('"$@" cp tree "$id:/srv/cp"', there="/srv/cp"),
            "tar-in": side('tar c tree | "$@" exec "$id" tar x -C /srv/tar', there="/srv/tar"),
        }
        await context.interleave(samples, small, rounds=3, quick_rounds=1, warm_up=0)
        small = {
            "cp-out": side('"$@" cp "$id:/srv/cp/tree" cp', here="cp"),
            "tar-out": side('"$@" exec "$id" tar c -C /srv/tar tree | tar x -C tar', here="tar"),
        }
        await context.interleave(samples, small, rounds=3, quick_rounds=1, warm_up=0)
    return samples


def _row(key: str, what: str, *, of: str, to: str, at_least: float, bounds: str) -> Row:
    return Row(
        key=f"copies.{key}",
        text=f"{what}: how fast, as a share",
        kind="ratio",
        of=to,
        to=of,
        target=Target(at_least=at_least),
        bounds=bounds,
        smaller_is_better=False,
    )


def _large(key: str, what: str, *, of: str, to: str) -> Row:
    bounds = "The file is read or written on the host besides, in a thread, and content passes through Python."
    return _row(key, f"{what} of 200 MB over the bare line's file", of=of, to=to, at_least=0.9, bounds=bounds)


def _small(key: str, what: str, *, of: str, to: str) -> Row:
    bounds = "Each name is an entry that Python makes or reads."
    text = f"`vmfork cp` of 10,000 files {what} over tar through exec"
    return _row(key, text, of=of, to=to, at_least=0.5, bounds=bounds)


MEASURE = Measure(
    name="copies",
    title="Files into a machine and out of it",
    unit="s",
    run=run,
    budget_s=25.0,
    is_asked_for=True,
    rows=(
        _large("put", "`put`", of="put", to="raw-in"),
        _large("get", "`get`", of="get", to="raw-out"),
        _small("in", "in", of="cp-in", to="tar-in"),
        _small("out", "out", of="cp-out", to="tar-out"),
    ),
)
