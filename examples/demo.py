"""Builds image and template, forks ten machines, gives each its own real work, checks every result, and shows the cost.

Exits non-zero when a result is wrong, when two forks share random bytes, or when anything is left behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

import vmfork
from vmfork.units import format_bytes, format_duration

if TYPE_CHECKING:
    from vmfork.progress import Progress

FORKS = 10
TEMPLATE = f"demo-{os.getpid()}"

# What each machine runs: it reads its input file, and writes a result that the host can check.
SCRIPT = """
import hashlib, json, sys
with open("/work/input.json") as file:
    numbers = json.load(file)
primes = [n for n in numbers if n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))]
text = ",".join(map(str, sorted(primes)))
json.dump({"primes": len(primes), "digest": hashlib.sha256(text.encode()).hexdigest()}, sys.stdout)
"""


def make_input(seed: int) -> list[int]:
    return random.Random(seed).sample(range(10_000), 500)


def expected(numbers: list[int]) -> dict[str, object]:
    """The same result, computed on the host in another way."""
    sieve = bytearray([1]) * 10_000
    sieve[:2] = b"\0\0"
    for n in range(2, 100):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(sieve[n * n :: n]))
    primes = sorted(n for n in numbers if sieve[n])
    return {"primes": len(primes), "digest": hashlib.sha256(",".join(map(str, primes)).encode()).hexdigest()}


def show_progress(event: Progress) -> None:
    print(f"  {event.step}", file=sys.stderr)


def measure_cold_boot(config: vmfork.VMConfig) -> tuple[float, float]:
    """Seconds to a booted machine, and to its first result."""
    start = time.perf_counter()
    with vmfork.VM.boot(config, progress=show_progress) as vm:
        booted = time.perf_counter() - start
        vm.exec(["true"], check=True)
        return booted, time.perf_counter() - start


def work(vm: vmfork.VM, numbers: list[int]) -> dict[str, object]:
    vm.write_file("/work/input.json", json.dumps(numbers), parents=True)
    vm.write_file("/work/work.py", SCRIPT)
    answer = vm.exec(["python3", "/work/work.py"], timeout_s=120, check=True)
    return dict(json.loads(answer.stdout))


def find_leftovers(places: vmfork.Places, pids: list[int]) -> list[str]:
    found = [f"process {pid}" for pid in pids if Path(f"/proc/{pid}").exists()]
    found += [f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines() if TEMPLATE in line]
    found += [str(path) for path in (places.templates / TEMPLATE,) if path.exists()]
    found += [str(path) for path in places.vms.iterdir() if path.name in IDS] if places.vms.is_dir() else []
    return found


IDS: list[str] = []


def main() -> int:
    console = Console()
    config = vmfork.VMConfig()
    failures: list[str] = []
    pids: list[int] = []
    rows: list[tuple[str, ...]] = []
    print(f"template {TEMPLATE!r}:", file=sys.stderr)
    template = vmfork.Template.build(TEMPLATE, config, progress=show_progress)
    try:
        # After the template, so that building the image is not counted as part of a boot.
        print("cold boot, to compare with:", file=sys.stderr)
        booted_s, boot_first_s = measure_cold_boot(config)
        vms: list[vmfork.VM] = []
        seen: set[bytes] = set()
        try:
            for index in range(FORKS):
                start = time.perf_counter()
                vm = template.fork()
                forked_s = time.perf_counter() - start
                vms.append(vm)
                pids.append(vm.pid)
                IDS.append(vm.id)
                drawn = vm.exec(["head", "-c", "64", "/dev/urandom"], check=True).stdout_bytes
                first_s = time.perf_counter() - start
                if drawn in seen or len(drawn) != 64:
                    failures.append(f"fork {index} drew random bytes another fork drew before")
                seen.add(drawn)
                numbers = make_input(index)
                result = work(vm, numbers)
                if result != expected(numbers):
                    failures.append(f"fork {index} computed {result}, not {expected(numbers)}")
                memory = vm.memory()
                rows.append(
                    (
                        vm.hostname,
                        format_duration(forked_s),
                        format_duration(first_s),
                        format_bytes(memory.guest_shared),
                        format_bytes(memory.guest_private),
                        format_bytes(memory.private),
                        f"{result['primes']} primes",
                    )
                )
        finally:
            for vm in vms:
                vm.close()
    finally:
        template.remove()
    title = f"{FORKS} forks of one template ({config.memory_mib} MiB, {vms[0].accel})"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)  # fits into 80 columns
    for heading in ("machine", "fork", "first\nresult", "RAM\nshared", "RAM\nown", "process\nown", "work,\nchecked"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row("cold boot", format_duration(booted_s), format_duration(boot_first_s), "-", "-", "-", "-")
    console.print(table)
    failures += [f"left behind: {what}" for what in find_leftovers(vmfork.find_places(), pids)]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print("every result right, no random bytes shared, nothing left behind" if not failures else "FAILED")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
