"""The passt beside a QEMU whose card leads out by it, as its owner has it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Self

from vmfork.errors import DeadlineExceeded, HostError
from vmfork.host.folders import tail_of
from vmfork.host.passt import start_passt
from vmfork.host.process import WatchedProcess, is_ending, read_argv
from vmfork.host.users import lease_user
from vmfork.host.wait import wait_readable
from vmfork.hypervisor.base import HANGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from vmfork.host.passt import StartedPasst
    from vmfork.host.process import ProcessIdentity
    from vmfork.hypervisor.base import Launch

LOG = "passt.log"
_HINT = "vmfork doctor looks at it; passt needs a default route, and the right to make user namespaces"


def start_outlet(launch: Launch, *, opened: ExitStack) -> StartedPasst | None:
    """passt, where the machine's card leads out by it. `opened` closes what a keeper has not taken over.

    Where the machine gets a user id of its own, passt gets another. Raises `HostError` when it cannot be run.
    """
    if launch.link is None or launch.link.outlet is None:
        return None
    users = launch.containment.users if launch.containment.has("user") else None
    lease = None if users is None else opened.enter_context(lease_user(users))
    log_fd = os.open(launch.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    opened.callback(os.close, log_fd)
    started = start_passt(launch.link.outlet, log_fd=log_fd, lease=lease)
    opened.callback(started.close)
    return started


class WatchedOutlet:
    """A passt that a keeper has: whether it has come up, and whether it has ended before its machine."""

    def __init__(self, identity: ProcessIdentity, *, folder: Path, ready: int | None = None) -> None:
        self.identity = identity
        self._folder = folder
        self._ready = ready
        self._process: WatchedProcess | None = None
        try:
            self._process = WatchedProcess(identity, read_argv(identity.pid), _know_nothing)
        except ProcessLookupError:  # it was reaped
            return
        except BaseException:
            self.close()
            raise

    @classmethod
    def find(cls, identity: ProcessIdentity | None, *, folder: Path) -> Self | None:
        """That of a machine that was taken over."""
        return None if identity is None else cls(identity, folder=folder)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """`callback` is called once it has ended, unless it is not watched any more by then."""
        if self._process is None:
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._process.on_exit(lambda _: callback())

    async def wait_up(self, *, timeout_s: float) -> None:
        """It has come up; once that was seen, nothing is done. Raises `HostError` when it ends; `DeadlineExceeded`."""
        if self._ready is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await wait_readable(self._ready)
        except TimeoutError as error:
            raise DeadlineExceeded("the start of passt", timeout_s, hint=HANGS) from error
        is_up = os.read(self._ready, 1) != b""
        self._close_ready()
        # One of 2024 or later closes what it does not know of, and goes on.
        if not is_up and is_ending(self.identity.pid):
            raise HostError("passt ended as it started", hint=_HINT, log=tail_of(self._folder / LOG))

    def close(self) -> None:
        """It is not watched any more. Nothing was done to it."""
        self._close_ready()
        process, self._process = self._process, None
        if process is not None and not process.has_ended:
            process.forget()

    def _close_ready(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            os.close(ready)


def _know_nothing() -> None:
    """`None`: whoever started it reaps it, with its machine."""
