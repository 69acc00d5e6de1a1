"""CPU time of processes, which other load on the host disturbs less than wall time."""

from __future__ import annotations

from pathlib import Path


def cpu_seconds_of(pid: int | str) -> float:
    """Seconds that all threads of the process ran; 0 when it has ended.

    From /proc/PID/task/TID/schedstat, in nanoseconds (proc(5)): a tick of `stat` is as long as what is looked for.
    """
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:
        return 0.0
    return sum(int(stat.split()[0]) for stat in stats) / 1e9
