"""A child process that is watched through its pidfd, and the name of a process that survives pid reuse."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmfork.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for good: a pid alone is reused, a pid with its start time (clock ticks since host boot) is not."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of the process that has `pid` now; `None` when there is none (a zombie counts as none)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # proc(5): the command name may hold spaces and parentheses; fields are counted from the last ')'.
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in (b"Z", b"X") else cls(pid, int(fields[19]))

    def is_alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    def kill(self) -> bool:
        """The process was sent SIGKILL, if it still is the one meant; tells whether it was."""
        try:
            fd = os.pidfd_open(self.pid)
        except (OSError, OverflowError):  # gone, or a number from a damaged record that never was a pid
            return False
        try:
            # The pidfd pins the process, so what is compared after opening it is what gets the signal.
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


# Who died before the parent-death signal was set is noticed here: the child has another parent by then. $0 is our pid.
_IF_NOT_ORPHANED = '[ "$PPID" = "$0" ] && exec "$@"'


@cache
def _find_setpriv() -> str:
    """The path of util-linux's setpriv, which sets the parent-death signal and then becomes the program."""
    path = shutil.which("setpriv") or shutil.which("setpriv", path="/usr/bin:/bin")
    if path is None:
        raise HostError("the program setpriv was not found", hint="install util-linux: apt-get install util-linux")
    return path


def _die_with_us() -> list[str]:
    """What stands before a program so that it ends with this process, whenever that is."""
    guard = ["/bin/sh", "-c", _IF_NOT_ORPHANED, str(os.getpid())]
    return [_find_setpriv(), "--pdeathsig", "KILL", "--", *guard]


class Process:
    """Owner of one child process, in a session of its own so that a terminal's Ctrl-C does not reach it.

    With `dies_with_us` the kernel kills it when the thread that started it ends, even by SIGKILL (prctl(2),
    PR_SET_PDEATHSIG). A preexec function would do the same but forces fork() in place of vfork() and is unsafe with
    threads; setpriv and the shell that looks whether we still live cost an exec each, a millisecond and a half.
    """

    def __init__(self, child: subprocess.Popen[bytes], argv: tuple[str, ...]) -> None:
        self.argv = argv
        self.pid = child.pid
        self.identity = ProcessIdentity.of(child.pid) or ProcessIdentity(child.pid, 0)
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._pidfd = os.pidfd_open(child.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    def start(
        cls, argv: Sequence[str], *, log_fd: int, pass_fds: Sequence[int] = (), dies_with_us: bool = True
    ) -> Self:
        """A running child with `pass_fds` inherited under the same numbers; its output and errors go to `log_fd`."""
        command = [*_die_with_us(), *argv] if dies_with_us else list(argv)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"cannot start {argv[0]}: {error.strerror}") from error
        try:
            return cls(child, tuple(argv))
        except BaseException:
            child.kill()
            child.wait()
            raise

    @property
    def exit_code(self) -> int | None:
        """The exit status, negative for a signal, or `None` while it runs."""
        return self._exited.result() if self._exited.done() else None

    def on_exit(self, callback: Callable[[int], None]) -> None:
        """`callback(exit_code)` runs on the loop once the process has ended."""
        self._exited.add_done_callback(lambda future: callback(future.result()))

    async def wait(self) -> int:
        """The process has ended and was reaped; its exit status."""
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        """The process was sent SIGKILL; nothing happens where it has ended already."""
        if not self._exited.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        if not self._exited.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def aclose(self) -> None:
        """The process is gone and reaped, whatever it was doing."""
        self.kill()
        await self.wait()

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exited.set_result(self._child.wait())
