"""make bench: forking with vmfork beside the same fork by hand (raw.py) and beside a cold boot, in one run.

Only ratios count: the machine is shared and noisy, so the sides take turns. Writes benchmarks/last.json (raw samples).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raw import Fork

from vmfork.aio import VM, Template
from vmfork.config import Places, VMConfig, find_places

HERE = Path(__file__).parent


def raw_argv(template: Template) -> list[str]:
    """The very arguments a fork gets, taken from a real one, with the descriptors' numbers left open."""
    argv = asyncio.run(_argv_of(template))
    return [_with_open_numbers(part) for part in argv]


def _with_open_numbers(part: str) -> str:
    if part.startswith("memory-backend-file"):
        return ",".join("mem-path=/proc/self/fd/{memory}" if p.startswith("mem-path=") else p for p in part.split(","))
    for start, instead in (
        ("socket,id=qmp,fd=", "socket,id=qmp,fd={qmp},server=on,wait=off"),
        ("socket,id=agent,fd=", "socket,id=agent,fd={agent},server=on,wait=off"),
        ("socket,id=console,fd=", "socket,id=console,fd={console}"),
        ("vmgenid,guid=", "vmgenid,guid={generation}"),
        ("fd:", "fd:{state}"),
        ("file:/proc/self/fd/", "file:/proc/self/fd/{state}"),
    ):
        if part.startswith(start):
            return instead
    return part


async def _argv_of(template: Template) -> tuple[str, ...]:
    async with await template.fork() as vm:
        return vm.argv


def time_raw(argv: list[str], files: dict[str, str]) -> float:
    start = time.perf_counter()
    fork = Fork(argv, files=files)
    try:
        fork.agent.adopt(fork.generation)
        fork.agent.exec_true()
        return time.perf_counter() - start
    finally:
        fork.close()


async def time_fork(template: Template) -> tuple[float, float]:
    start = time.perf_counter()
    async with await template.fork() as vm:
        forked = time.perf_counter() - start
        await vm.exec(["true"], check=True)
        return forked, time.perf_counter() - start


async def time_boot(config: VMConfig, places: Places) -> float:
    start = time.perf_counter()
    async with await VM.boot(config, places=places) as vm:
        await vm.exec(["true"], check=True)
        return time.perf_counter() - start


def time_cli(name: str) -> float:
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("vmfork"), "run", "-t", name, "--", "true"], check=True)
    return time.perf_counter() - start


def files_of(template: Template, places: Places) -> dict[str, str]:
    folder = places.templates / template.name / template.generation
    return {"memory": str(folder / "memory"), "state": str(folder / "state")}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, default=20, help="rounds; each side runs once a round")
    rounds = parser.parse_args().n
    runtime = tempfile.mkdtemp(prefix="vmfork-bench-", dir="/dev/shm")
    os.environ["VMFORK_RUNTIME_DIR"] = runtime
    places = find_places()
    samples: dict[str, list[float]] = {key: [] for key in ("raw", "first_exec", "fork", "fork_2g", "cli", "boot")}
    config = VMConfig()
    small = asyncio.run(Template.build("bench", config))
    large = asyncio.run(Template.build("bench-2g", VMConfig(memory_mib=2048)))
    try:
        argv, files = raw_argv(small), files_of(small, places)
        for index in range(rounds + 2):
            raw = time_raw(argv, files)
            forked, first = asyncio.run(time_fork(small))
            forked_large, _ = asyncio.run(time_fork(large))
            cli = time_cli("bench")
            if index < 2:
                continue  # page cache and imports
            for key, value in (
                ("raw", raw), ("fork", forked), ("first_exec", first), ("fork_2g", forked_large), ("cli", cli)
            ):  # fmt: skip
                samples[key].append(value)
        samples["boot"] = [asyncio.run(time_boot(config, places)) for _ in range(3)]
    finally:
        asyncio.run(small.remove())
        asyncio.run(large.remove())
    report(samples)
    result = {
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "qemu": small.manifest.traits["qemu.version"],
        "accel": small.manifest.traits["accel"],
        "samples_s": samples,
    }
    (HERE / "last.json").write_text(json.dumps(result, indent=1) + "\n")
    for path in sorted(Path(runtime).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path(runtime).rmdir()
    return 0


def report(samples: dict[str, list[float]]) -> None:
    median = {key: statistics.median(values) for key, values in samples.items()}
    for key, text in (
        ("raw", "by hand: fork to first exec"),
        ("first_exec", "vmfork: fork to first exec"),
        ("fork", "vmfork: fork, 256 MiB template"),
        ("fork_2g", "vmfork: fork, 2 GiB template"),
        ("cli", "vmfork run -- true"),
        ("boot", "cold boot to first exec"),
    ):
        print(f"{text:34} {median[key] * 1000:8.1f} ms   (min {min(samples[key]) * 1000:.1f}, n={len(samples[key])})")
    print()
    for text, value, target in (
        ("first exec / by hand", median["first_exec"] / median["raw"], "at most 1.25"),
        ("cold boot / first exec", median["boot"] / median["first_exec"], "at least 15"),
        ("fork 2 GiB / fork 256 MiB", median["fork_2g"] / median["fork"], "0.9 to 1.1"),
        ("vmfork run above library, ms", (median["cli"] - median["first_exec"]) * 1000, "at most 150"),
    ):
        print(f"{text:34} {value:8.2f}      target {target}")


if __name__ == "__main__":
    sys.exit(main())
