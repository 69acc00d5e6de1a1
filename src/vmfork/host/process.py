"""A process that is watched through its pidfd, and the name of a process that survives pid reuse."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import HostError
from vmfork.host.wait import wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def read_stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on, the state (proc(5)); empty for no process, and for a zombie.

    Raises `OSError` when the host refuses to tell: a process is not gone because there was no descriptor to ask with.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last, with hidepid=1, of another user's
        return []
    # The second, the command's name, may hold spaces and parentheses: it ends with the last ')'.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return [] if fields[0] in (b"Z", b"X") else fields


# PF_EXITING (linux/sched.h), set before a process's descriptors are closed.
_EXITING = 0x4


def is_ending(pid: int) -> bool:
    """Whether there is no such process, or it ends just now: its descriptors are closed before it has ended."""
    fields = read_stat(pid)
    return not fields or bool(int(fields[6]) & _EXITING)


def read_argv(pid: int) -> tuple[str, ...]:
    """The command line of the process; empty for none."""
    try:
        return tuple(os.fsdecode(part) for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1])
    except OSError:
        return ()


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for good: a pid alone is reused, a pid with its start time (clock ticks since host boot) is not."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of the process that has `pid` now; `None` when no process has it, or a zombie.

        Raises `OSError` when the host refuses to tell.
        """
        fields = read_stat(pid)
        return cls(pid, int(fields[19])) if fields else None

    def is_alive(self) -> bool:
        return ProcessIdentity.of(self.pid) == self

    def kill(self) -> bool:
        """SIGKILL was sent, if the pid still names the process that is meant. Tells whether it did.

        Raises `OSError` when the host refuses: it may run on.
        """
        if not self.is_alive():  # nor does a damaged record's number, which never was a pid
            return False
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
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


def read_starved_s(pid: int) -> float:
    """Seconds that the threads of process `pid` were ready to run and the host had no CPU for them, added up.

    From /proc/PID/task/*/schedstat (Linux, Documentation/scheduler/sched-stats.rst). A thread that has ended is not in
    it; 0 where the kernel does not count it, or the process is gone.
    """
    waited_ns = 0
    with suppress(OSError):  # the process has ended
        for name in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):  # the thread has ended
                waited_ns += int(Path(f"/proc/{pid}/task/{name}/schedstat").read_bytes().split()[1])
    return waited_ns / 1e9


async def wait_ended(identity: ProcessIdentity) -> None:
    """The process has ended. It need not be a child, and nothing was done to it."""
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        if identity.is_alive():
            await wait_readable(fd)
    finally:
        os.close(fd)


class WatchedProcess:
    """A process watched through its pidfd, which need not be a child. `collect` gives its exit status in the end.

    The status is negative for a signal, and `None` where it cannot be known, because the process is no child of ours.
    """

    def __init__(self, identity: ProcessIdentity, argv: tuple[str, ...], collect: Callable[[], int | None]) -> None:
        self.argv = argv
        self.pid = identity.pid
        self.identity = identity
        self._collect = collect
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int | None] = self._loop.create_future()
        self._was_ended = False  # without the loop, which cannot tell of it once it is closed
        self._pidfd = os.pidfd_open(identity.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def has_ended(self) -> bool:
        return self._exited.done() or self._was_ended

    @property
    def exit_code(self) -> int | None:
        """The exit status, or `None` while it runs or where it is not known."""
        return self._exited.result() if self._exited.done() else None

    def on_exit(self, callback: Callable[[int | None], None]) -> None:
        """`callback(exit_code)` runs on the loop once the process has ended."""
        self._exited.add_done_callback(lambda future: callback(future.result()))

    async def wait(self) -> int | None:
        """The process has ended, and was reaped if it is a child; its exit status."""
        return await asyncio.shield(self._exited)

    def kill(self) -> None:
        """The process was sent SIGKILL; nothing happens where it has ended already."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        if not self.has_ended:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    async def aclose(self) -> None:
        """The process is gone and reaped, whatever it was doing. Cancelled, it is waited for without the loop."""
        self.kill()
        try:
            await self.wait()
        except BaseException:  # GeneratorExit too: the loop was closed under whoever waits here
            self.end()
            raise

    def end(self) -> None:
        """The process is gone and reaped, without an event loop: for when the one it was watched by is gone."""
        if self.has_ended:
            return
        self.kill()
        self._was_ended = True
        status = self._collect()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._pidfd)
            self._exited.set_result(status)
        self._stop_watching()

    def forget(self) -> None:
        """It is not watched any more. Nothing was done to it."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._pidfd)
        self._stop_watching()

    def let_end(self) -> None:
        """A child that ends by itself is reaped when it does, also when the loop has ended by then.

        It is not watched any more: nobody can wait for it.
        """
        if self.has_ended:
            return
        self.forget()
        try:
            threading.Thread(target=self._collect, name=f"vmfork-reap-{self.pid}", daemon=True).start()
        except RuntimeError:  # no thread is to be had, or the interpreter ends (Python 3.12)
            self._collect()

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1

    def _reap(self) -> None:
        self.forget()
        self._exited.set_result(self._collect())


def spawn(
    command: Sequence[str], *, log_fd: int, pass_fds: Sequence[int], env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A running child in a session of its own, with nothing to read and `log_fd` to write to. The caller reaps it.

    `env` is all of its environment: ours holds what belongs to nobody else, such as keys.
    """
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=pass_fds,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"cannot start {command[0]}: {error.strerror}") from error


def watch(child: subprocess.Popen[bytes], command: Sequence[str]) -> WatchedProcess:
    """The child, watched. Raises `OSError` when it cannot be, for want of descriptors; it is gone then, and reaped."""
    try:
        return WatchedProcess(identify(child), tuple(command), child.wait)
    except BaseException:
        child.kill()
        child.wait()
        raise


def identify(child: subprocess.Popen[bytes]) -> ProcessIdentity:
    """The identity of a child that was not reaped, though it may have ended."""
    return ProcessIdentity.of(child.pid) or ProcessIdentity(child.pid, 0)
