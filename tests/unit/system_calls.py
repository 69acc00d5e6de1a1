"""What strace saw a program call, beside what its README declares."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def declared(program: str) -> dict[str, set[str]]:
    """The table under "System calls": when -> the calls that are made then."""
    table = (ROOT / program / "README.md").read_text().partition("## System calls")[2]
    calls: dict[str, set[str]] = {}
    for when, names in re.findall(r"^\| ([a-z][^|]*) \| [^|]* \| ([^|]*) \|$", table, re.MULTILINE):
        calls.setdefault(when, set()).update(re.findall(r"`(\w+)`", names))
    return calls


def called(trace: Path, *, after: str = "") -> set[str]:
    """The names of all calls; with `after`, of the process that made this call from then on."""
    text = trace.read_text()
    if after:
        pid = pid_of(trace, after)
        text = "\n".join(line for line in text[text.index(after) :].splitlines() if line.startswith(f"{pid} "))
    return set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))


def pid_of(trace: Path, call: str) -> int:
    """Who made the first such call."""
    return int(next(line for line in trace.read_text().splitlines() if call in line).split()[0])


def check_declared(seen: set[str], here: set[str], elsewhere: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Nothing was called that is not declared, and nothing is declared for `here` that was not called."""
    assert sorted(seen - here - elsewhere) == [], f"called, and not declared: {sorted(seen - here - elsewhere)}"
    assert sorted(here - seen) == [], f"declared, and never called: {sorted(here - seen)}"
