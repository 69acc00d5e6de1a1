"""Where a run's time went, by file: `--files N` tells the N that took longest, `--files-to FILE` writes all of them.

Beside the time on the clock stands the processors' time, of the process and of all children that it has waited for:
where several runs share a host, only that can be compared. A file's time is what it takes more than once as well: the
fixtures that its first tests make.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_LATEST = pytest.StashKey["_Reading"]()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What this process had used by then, in seconds."""

    clock_s: float
    cpu_s: float

    @classmethod
    def take(cls) -> _Reading:
        used = os.times()
        return cls(time.monotonic(), used.user + used.system + used.children_user + used.children_system)


@dataclass(slots=True)
class Spent:
    """What the tests of one file took together. `slowest` is the one that took longest, and `slowest_s` how long."""

    clock_s: float = 0.0
    cpu_s: float = 0.0
    tests: int = 0
    slowest: str = ""
    slowest_s: float = 0.0


@dataclass(eq=False, slots=True)  # pytest keeps plugins in sets
class _Telling:
    count: int
    file: Path | None
    begun_s: float = field(default_factory=time.monotonic)
    files: dict[str, Spent] = field(default_factory=dict)
    ended_s: dict[str, float] = field(default_factory=dict)
    """When each process of the run told of its last test."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        clock_s, cpu_s = getattr(report, "spent", (report.duration, 0.0))
        spent = self.files.setdefault(report.nodeid.split("::", 1)[0], Spent())
        spent.clock_s += clock_s
        spent.cpu_s += cpu_s
        spent.tests += report.when == "call"
        if clock_s > spent.slowest_s:
            spent.slowest, spent.slowest_s = f"{report.nodeid.split('::', 1)[-1]} ({report.when})", clock_s
        self.ended_s[getattr(report, "worker_id", "all")] = time.monotonic() - self.begun_s

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        longest = sorted(self.files.items(), key=lambda item: -item[1].clock_s)
        if self.file is not None:
            told = {"files": {name: asdict(spent) for name, spent in longest}, "ended_s": self.ended_s}
            self.file.write_text(json.dumps(told, indent=1) + "\n")
        terminalreporter.section("where the time went")
        terminalreporter.write_line("   clock      CPU  tests  file, and what took longest in it")
        for name, spent in longest[: self.count]:
            slowest = f"{spent.slowest_s:.1f} s {spent.slowest}"
            terminalreporter.write_line(f"{_columns(spent)} {spent.tests:6}  {name}: {slowest}")
        every = self.files.values()
        whole = Spent(sum(spent.clock_s for spent in every), sum(spent.cpu_s for spent in every))
        ends = ", ".join(f"{name} after {at_s:.0f} s" for name, at_s in sorted(self.ended_s.items()))
        terminalreporter.write_line(f"{_columns(whole)}  {len(self.files)} files; ended: {ends}")


def _columns(spent: Spent) -> str:
    return f"{spent.clock_s:6.1f} s {spent.cpu_s:6.1f} s"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--files", metavar="N", type=int, default=0, help="tells the N files that took longest")
    parser.addoption("--files-to", metavar="FILE", type=Path, help="writes what each file took there, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    asked, file = config.getoption("files"), config.getoption("files_to")
    if (asked or file) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Telling(asked, file))


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_LATEST] = _Reading.take()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The report says what was used since the one before it: none of the time is nobody's."""
    report = yield
    before, now = item.config.stash[_LATEST], _Reading.take()
    item.config.stash[_LATEST] = now
    report.spent = (now.clock_s - before.clock_s, now.cpu_s - before.cpu_s)
    return report
