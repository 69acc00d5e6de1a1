"""When a test fails, its report shows every machine it had: arguments, QEMU's log, the console, what was said over QMP.

A machine that was closed by then has left no file. So what this process starts or attaches is noted while it lives;
machines of other processes are read from their folders, where they still are.
"""

from __future__ import annotations

import re
import shlex
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.rules.traces import command_of
from vmfork.config import find_places
from vmfork.host.folders import tail_of
from vmfork.hypervisor.qemu.machine import CONSOLE, LOG, QemuMachine

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

_LINES = 60


@dataclass(slots=True)
class Noted:
    """One machine of this process. Not held: an owner that was forgotten must be found as soon as it would be."""

    name: str
    machine: weakref.ref[QemuMachine]
    transcript: Sequence[str] = ()
    parts: dict[str, str] = field(default_factory=dict)

    def note(self) -> None:
        if (machine := self.machine()) is not None:
            self.parts = {
                "arguments": shlex.join(machine.argv),
                "exit status": "none: it runs" if not machine.has_ended else str(machine.exit_code),
                "QEMU's log": machine.log_tail() or self.parts.get("QEMU's log", ""),
                "console": machine.console_tail(),
            }

    def __str__(self) -> str:
        return _layout({**self.parts, "QMP": "\n".join(self.transcript)})


_noted: list[Noted] = []


def pytest_configure() -> None:
    """From now on machines are noted when they are made, when their monitor is opened and when they are closed."""
    make, get_monitor, close = QemuMachine.__init__, QemuMachine._get_monitor, QemuMachine.aclose

    def noting_make(self: QemuMachine, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        _noted.append(Noted(self._name, weakref.ref(self)))

    async def noting_monitor(self: QemuMachine) -> Any:
        monitor = await get_monitor(self)
        _of(self).transcript = monitor.transcript
        return monitor

    async def noting_close(self: QemuMachine) -> None:
        try:
            await close(self)
        finally:
            _of(self).note()

    QemuMachine.__init__ = noting_make
    QemuMachine._get_monitor = noting_monitor
    QemuMachine.aclose = noting_close


def _of(machine: QemuMachine) -> Noted:
    found = [noted for noted in _noted if noted.machine() is machine]
    return found[0] if found else Noted(machine._name, weakref.ref(machine))  # of an earlier test: nobody asks


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _noted.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        own = {noted.name for noted in _noted}
        for noted in _noted:
            noted.note()
            report.sections.append((f"machine {noted.name}", str(noted)))
        for folder in find_places().vms.glob("[!.]*"):
            if folder.name not in own:
                report.sections.append((f"machine {folder.name} of another process", describe_folder(folder)))
    return report


def describe_folder(folder: Path) -> str:
    """What a machine's folder tells of it. The record as it is: what cannot be read any more is what is looked for."""
    record = tail_of(folder / "vm.json")
    pid = re.search(r'"pid": (\d+)', record)
    return _layout(
        {
            "record": record,
            "arguments": command_of(int(pid[1])) if pid is not None else "",
            "QEMU's log": tail_of(folder / LOG),
            "console": tail_of(folder / CONSOLE),
        }
    )


def _layout(parts: dict[str, str]) -> str:
    """Each part that says something under its name, its last lines only."""
    return "\n".join(
        f"[{name}]\n" + "\n".join(text.strip().splitlines()[-_LINES:]) for name, text in parts.items() if text.strip()
    )
