"""What one program in a guest may use."""

from __future__ import annotations

from dataclasses import dataclass

from vmfork.errors import ConfigError
from vmfork.units import MAX_DURATION_S

_MOST_MIB = 1 << 32
_MOST_PROCESSES = 1 << 22  # PID_MAX_LIMIT, linux/threads.h


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLimits:
    """What one program, with all that it starts, may use. `None` is no limit.

    `cpu_s`: seconds of processor time, of all its processes together; when they are used up it is killed.
    `memory_mib`: MiB of memory, what it wrote to file systems in memory included; when it wants more it is killed.
    `processes`: processes and threads at a time; one more cannot be started. They end with the program: what it leaves
    running has none. Raises `ConfigError` for any other value.
    """

    cpu_s: float | None = None
    memory_mib: int | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        is_time = isinstance(self.cpu_s, (int, float)) and not isinstance(self.cpu_s, bool)
        if self.cpu_s is not None and not (is_time and 0.001 <= self.cpu_s <= MAX_DURATION_S):
            reason = f"{self.cpu_s!r} is not a number of seconds from 0.001 to {MAX_DURATION_S:,}"
            raise ConfigError("cpu_s", self.cpu_s, reason, hint="leave it out for no limit")
        for name, most in (("memory_mib", _MOST_MIB), ("processes", _MOST_PROCESSES)):
            if (value := getattr(self, name)) is not None and not is_whole(value, most):
                reason = f"{value!r} is not a whole number from 1 to {most:,}"
                raise ConfigError(name, value, reason, hint="leave it out for no limit")


def is_whole(value: object, most: int) -> bool:
    """Whether `value` is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
