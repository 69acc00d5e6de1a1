"""A QEMU that a broker owns, as one of the broker's clients has it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from vmfork.errors import VMNotFound
from vmfork.host.folders import tail_of
from vmfork.host.process import WatchedProcess, read_argv
from vmfork.hypervisor.qemu.machine import CONSOLE, QemuMachine, open_monitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmfork.host.process import ProcessIdentity
    from vmfork.hypervisor.qemu.monitor import Monitor


class SharedQemu(QemuMachine):
    """A machine that is watched, and paused or let run; closing it leaves it as it is.

    What else its base class does is an owner's. `Running` asks it of no machine that is shared.
    """

    def __init__(self, process: WatchedProcess, *, name: str, folder: Path) -> None:
        self._process = process  # type: ignore[assignment] # no keeper: there is nothing to hand over
        self._name = name
        self._folder = folder
        self._opening = asyncio.Lock()
        self._monitor = None
        self._outlet = None
        self._unused = asyncio.Event()
        self._unused.set()
        self._detached = False
        self._is_open = True

    @classmethod
    def watch(cls, identity: ProcessIdentity, *, name: str, folder: Path) -> Self:
        """The machine in `folder`, whose process is `identity`. Raises `VMNotFound` when that has ended."""
        try:
            process = WatchedProcess(identity, read_argv(identity.pid), lambda: None)
        except ProcessLookupError as error:
            raise VMNotFound(name, "it has ended") from error
        if not identity.is_alive():
            process.forget()
            raise VMNotFound(name, "it has ended")
        return cls(process, name=name, folder=folder)

    def on_halt(self, callback: Callable[[], None], /) -> None:
        """Nothing: a guest that halts is its broker's to end."""

    def console_tail(self) -> str:
        """The last lines that the guest wrote to its console, 4 KiB at most."""
        return tail_of(self._folder / CONSOLE)

    @property
    def console_bytes(self) -> int:
        return (self._folder / CONSOLE).stat().st_size

    async def aclose(self) -> None:
        """Nobody watches the machine here any more. It runs on."""
        self.end()

    def end(self) -> None:
        """As `aclose`, at once and without an event loop."""
        if self._is_open and not self._process.has_ended:
            self._process.forget()
        self._is_open = False

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Monitor]:
        """QEMU greets one client at a time, so none keeps the monitor: another waits until it is free."""
        self._check_here()
        async with self._opening:
            monitor = await open_monitor(self._folder)
            try:
                yield monitor
            finally:
                await monitor.aclose()
