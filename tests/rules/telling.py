"""What fails is named at once: of a run that is ended before its end, nothing else would tell."""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass(eq=False)  # pytest keeps plugins in sets
class _Telling:
    terminal: pytest.TerminalReporter

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            last = report.longreprtext.strip().splitlines()[-1:]
            self.terminal.write_line("\n" + ": ".join([f"FAILED {report.nodeid} ({report.when})", *last]))


def pytest_sessionstart(session: pytest.Session) -> None:
    plugins = session.config.pluginmanager
    # A worker of a parallel run has one too, which writes to nobody.
    if (terminal := plugins.get_plugin("terminalreporter")) is not None and not hasattr(session.config, "workerinput"):
        plugins.register(_Telling(terminal))
