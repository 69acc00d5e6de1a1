"""How long the host's tasks wait for memory (Linux, Documentation/accounting/psi.rst)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfork.host.procfs import read_whole

if TYPE_CHECKING:
    from pathlib import Path

_HOST = "/proc/pressure/memory"


def read_pressure_percent(path: str | Path = _HOST) -> float | None:
    """Percent of the last 10 s in which all tasks waited for memory at once; `None` where the kernel does not tell.

    The file may be a control group's `memory.pressure`: it is about the group's tasks then.
    """
    for line in read_whole(path).splitlines():
        if line.startswith(b"full avg10="):
            return _parse_percent(line.split()[1].removeprefix(b"avg10="))
    return None


def _parse_percent(text: bytes) -> float | None:
    try:
        percent = float(text)
    except ValueError:
        return None
    return percent if 0 <= percent <= 100 else None
