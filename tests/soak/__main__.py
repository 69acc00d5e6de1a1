"""`python -m tests.soak`: forks at once and in a row, megabytes through a port, processes that race for a name."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import AsyncExitStack, redirect_stdout
from pathlib import Path
from typing import Any

from tests.rules.traces import children
from tests.soak.through import pass_through
from tests.vm.cli_runner import left_of
from vmfork.aio import Template, VMConfig, find_places
from vmfork.cli.main import main as command
from vmfork.units import MIB

ROOT = Path(__file__).parents[2]
LIMIT_S = 300.0
# How many samples of the owner are taken in a row of forks. The first counts for nothing: what is imported is.
_SAMPLES = 20
# The allocator keeps a few pages more or fewer. A leak of one page for each of a thousand forks is 4 MiB.
_SLACK_MIB = 3.0


def main() -> int:
    asked = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="vmfork-soak-", dir="/dev/shm"))
    os.environ.setdefault("VMFORK_RUNTIME_DIR", str(folder / "run"))
    told: dict[str, Any] = {}
    try:
        if asked.at_once or asked.in_a_row or asked.disks or asked.through:
            asyncio.run(_with_template(asked, told))
        if asked.race_s:
            told["race"] = _race(asked.racers, asked.race_s)
        told["left"] = _left_after_one_sweep()
    finally:
        asyncio.run(_remove("soak", "raced"))
        shutil.rmtree(folder)
    print(json.dumps(told, indent=1))
    return int(bool(told["left"]) or not all(told[row]["flat"] for row in ("in_a_row", "disks") if row in told))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--at-once", type=int, default=50, help="so many forks of one template at once; 0: none")
    parser.add_argument("--in-a-row", type=int, default=1000, help="so many, one after the other; 0: none")
    parser.add_argument("--disks", type=int, default=100, help="so many in a row that are given a disk; 0: none")
    parser.add_argument("--through", type=int, default=200, help="so many MB each way through a port; 0: none")
    parser.add_argument("--race-s", type=float, default=300.0, help="how long processes race for one name; 0: not")
    parser.add_argument("--racers", type=int, default=6, help="how many processes do")
    return parser.parse_args()


async def _with_template(asked: argparse.Namespace, told: dict[str, Any]) -> None:
    template = await Template.build("soak", VMConfig())
    if asked.at_once:
        told["at_once"] = await _at_once(template, asked.at_once)
    if asked.in_a_row:
        told["in_a_row"] = await _in_a_row(template, asked.in_a_row)
    if asked.disks:
        told["disks"] = await _in_a_row(template, asked.disks, disk="64M", work="head -c 4M /dev/urandom > /scratch/x")
    if asked.through:
        told["through"] = await pass_through(template, asked.through)


async def _at_once(template: Template, count: int) -> dict[str, Any]:
    begun = time.perf_counter()
    async with AsyncExitStack() as stack:
        vms = [await stack.enter_async_context(vm) for vm in await template.fork_many(count)]
        forked = time.perf_counter()
        drawn = await asyncio.gather(
            *(vm.exec(["head", "-c", "16", "/dev/urandom"], timeout_s=LIMIT_S, check=True) for vm in vms)
        )
        used = time.perf_counter()
        assert len({result.stdout_bytes for result in drawn}) == count
        for what in ("hostname", "machine_id", "generation", "pid"):
            assert len({getattr(vm, what) for vm in vms}) == count, what
    return {"forks": count, "fork_s": round(forked - begun, 1), "exec_s": round(used - forked, 1)}


async def _in_a_row(template: Template, count: int, *, disk: str | None = None, work: str = "true") -> dict[str, Any]:
    begun, every, samples = time.perf_counter(), max(1, count // _SAMPLES), []
    for done in range(1, count + 1):
        async with template.fork(disk=disk) as vm:
            (await vm.exec(["sh", "-c", work], timeout_s=LIMIT_S)).check()
        if done % every == 0:
            samples.append(_look_at_owner())
    first, last = samples[len(samples) // 4], samples[-1]
    grown_mib = last["rss_mib"] - first["rss_mib"]
    same = all(last[what] == first[what] for what in ("descriptors", "threads", "children"))
    return {
        "forks": count,
        "seconds": round(time.perf_counter() - begun, 1),
        "samples": samples,
        "grown_mib": round(grown_mib, 2),
        "flat": same and grown_mib <= _SLACK_MIB,
    }


def _look_at_owner() -> dict[str, Any]:
    """What this process has, after what can be collected was."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / MIB, 2),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(children()),
    }


def _race(racers: int, seconds: float) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.soak.racer", "raced", str(seconds)]
    processes = [
        subprocess.Popen([*argv, str(seed)], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        for seed in range(racers)
    ]
    done: Counter[str] = Counter()
    ended = [process.communicate(timeout=seconds + LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0] * racers, "a racer met what it did not expect"
    for out, _ in ended:
        done.update(json.loads(out))
    return {"racers": racers, "seconds": seconds, "done": dict(sorted(done.items()))}


async def _remove(*names: str) -> None:
    for name in {*names} & {*await Template.list()}:
        await (await Template.open(name)).remove()


def _left_after_one_sweep() -> list[str]:
    with redirect_stdout(sys.stderr):
        assert command(["gc"]) == 0
    return left_of(find_places().runtime)


if __name__ == "__main__":
    sys.exit(main())
