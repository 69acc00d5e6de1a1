"""A command as somebody at a terminal has it: a pseudo-terminal, its keys, its size, its modes."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import Self

LIMIT_S = 120

# As little of a shell with job control as there can be. It tells the pid of its job; when that was stopped, how the
# terminal is; and continues it in the foreground after a line.
_SHELL = """
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
if not (pid := os.fork()):
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
print(f"job {pid}.", flush=True)
while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpgrp())
    print("stopped, in order:", bool(termios.tcgetattr(0)[3] & termios.ICANON), flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, pid)
    os.kill(pid, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(status))
"""
IN_A_SHELL = (sys.executable, "-c", _SHELL)


class AtTerminal:
    """Owner of a command that runs at a terminal of its own, which controls its session."""

    def __init__(self, *argv: str, rows: int = 24, columns: int = 80, env: dict[str, str] | None = None) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.modes = termios.tcgetattr(theirs)
        self._theirs = theirs  # open for as long as we look at its modes
        self.seen = b""
        self.process = subprocess.Popen(
            # Whoever runs the tests may ignore them, as nohup does, and a shell for what it starts in the background.
            ["env", "--default-signal=HUP,INT", "setsid", "--ctty", *argv],
            env={**os.environ, "TERM": "xterm", **(env or {})},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        self._pidfd = os.pidfd_open(self.process.pid)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def wait_for(self, text: str) -> str:
        """What was shown up to `text`, which was shown."""
        end = time.monotonic() + LIMIT_S
        while text.encode() not in self.seen:
            assert self._read(end - time.monotonic()), f"no {text!r} in {self.seen!r}, ended: {self.process.poll()}"
        before, _, self.seen = self.seen.partition(text.encode())
        return before.decode()

    def _read(self, limit_s: float) -> bool:
        """More was shown. False when nothing comes in that time, or nothing more can: it has ended."""
        ready, _, _ = select.select([self.ours, self._pidfd], [], [], max(0, limit_s))
        if self.ours in ready:
            self.seen += os.read(self.ours, 65_536)
        return self.ours in ready

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._theirs)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._theirs) == self.modes

    def wait_raw(self) -> None:
        """The terminal is raw: nothing tells when that happens."""
        end = time.monotonic() + LIMIT_S
        while not self.is_raw:
            assert time.monotonic() < end, "it is not raw"
            time.sleep(0.01)

    def end(self) -> tuple[int, str]:
        """The exit status, and what was shown since it was last waited for. No traceback was."""
        status = self.wait_ended()
        shown = self.seen.decode()
        assert "Traceback" not in shown, shown
        return status, shown

    def wait_ended(self) -> int:
        """The exit status. What was shown is in `seen`."""
        end = time.monotonic() + LIMIT_S
        while self._read(end - time.monotonic()):  # it may stand still until what it shows is read
            pass
        assert select.select([self._pidfd], [], [], 0)[0], f"it does not end: {self.seen!r}"
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        os.close(self._pidfd)
        os.close(self._theirs)
        os.close(self.ours)
