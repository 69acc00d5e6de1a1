"""The processor's time stamp counter: whether it tells the time, and how fast it counts."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from vmfork.errors import HostError
from vmfork.host.keeper import find_keeper

# It counts at one rate whatever the processor's own, and in idle states too (Linux, arch/x86/kernel/cpu).
_STEADY = frozenset({"constant_tsc", "nonstop_tsc"})
_LIMIT_S = 10.0


def has_steady_tsc(cpuinfo: str | None = None) -> bool:
    """The kernel says of this processor that its counter can serve as a clock."""
    text = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return set(flags.split()) >= _STEADY


@cache
def measure_tsc_khz() -> int:
    """How many thousand ticks the counter makes in a second; repeated, it agreed to 1 in 2,000,000.

    Takes 50 ms the first time; blocks. Raises `HostError` when there is no such counter.
    """
    command = [str(find_keeper()), "tsc-rate"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=True, env={})
        return int(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log = getattr(error, "stderr", None) or ""
        raise HostError(f"the rate of the processor's TSC cannot be measured: {error}", log=log) from error
