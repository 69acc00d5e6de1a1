"""A command in a window of tmux, on a server of its own: what a full-screen program draws there, and its keys."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Self

import pytest

from tests.children import wait_gone
from tests.vm.cli_runner import environment

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 60


class AtTmux:
    """Owner of the server, its window and what runs there."""

    def __init__(self, folder: Path, script: str, *, rows: int, columns: int) -> None:
        self._socket = folder / "tmux"
        self._ask("new-session", "-d", "-s", "t", "-x", str(columns), "-y", str(rows), script)
        pids = self._ask("display-message", "-p", "-t", "t", "#{pid} #{pane_pid}").split()
        self._pidfds = [os.pidfd_open(int(pid)) for pid in pids]

    def type(self, *keys: str) -> None:
        """Names of keys (tmux(1), KEY BINDINGS), or text."""
        self._ask("send-keys", "-t", "t", *keys)

    def resize(self, *, rows: int, columns: int) -> None:
        self._ask("resize-window", "-t", "t", "-x", str(columns), "-y", str(rows))

    def wait_for(self, text: str) -> str:
        """What the window shows once it has `text`: tmux tells no event of that."""
        end = time.monotonic() + LIMIT_S
        while text not in (shown := self._ask("capture-pane", "-p", "-t", "t")):
            if time.monotonic() > end:
                pytest.fail(f"no {text!r} in {shown!r}")
            time.sleep(0.1)
        return shown

    def _ask(self, *argv: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), "-f", "/dev/null", *argv],
            capture_output=True, text=True, check=True, timeout=LIMIT_S, env=environment({"TERM": "xterm"}),
        )  # fmt: skip
        return done.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self._ask("kill-server")
        for pidfd in self._pidfds:
            assert wait_gone(pidfd, limit_s=LIMIT_S)
            os.close(pidfd)
