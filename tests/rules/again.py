"""A few tests that failed may be tried once more, alone: `--failed FILE` writes their names there, a line each.

Nothing is written where there is no such test, where there are more than a few, or where something else went wrong too:
what a test or the run left behind, a process of the run that died, a file that cannot be read (docs/decisions/0062).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

MOST = 3
_PHASES = ("setup", "call")


@dataclass(eq=False)  # pytest keeps plugins in sets
class _Noting:
    file: Path
    failed: dict[str, None] = field(default_factory=dict)
    sound: bool = True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed[report.nodeid] = None
            self.sound = self.sound and report.when in _PHASES

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.sound = self.sound and not report.failed

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.TESTS_FAILED and self.sound and len(self.failed) <= MOST:
            self.file.write_text("".join(f"{name}\n" for name in self.failed))


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "writes the names of tests that failed there, where they are few and nothing else went wrong"
    parser.addoption("--failed", metavar="FILE", type=Path, help=told)


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("failed")
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Noting(file))
