"""A copier is started for one copy. What it does after it has told of that is nobody's to wait for."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmfork.host import copier
from vmfork.host.copier import Span, copy_machine

LIMIT_S = 20.0
TELLS = """#!/bin/sh
echo "copied watched pause_us 1500 stop_us 200 save_us 1000 go_on_us 300 pages 7"
read -r word < {held}
"""


@pytest.fixture
def let_go(tmp_path, monkeypatch):
    """In place of the copier a script that tells of a copy, and ends when it is let go."""
    held, script = tmp_path / "held", tmp_path / "copier"
    os.mkfifo(held)
    script.write_text(TELLS.format(held=held))
    script.chmod(0o755)
    monkeypatch.setattr(copier, "find_copier", lambda: script)
    return lambda: held.write_text("go\n")


async def copy_once():
    mapped = SimpleNamespace(memory_fd=-1, pagemap_fd=-1, faults_fd=-1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return await copy_machine(theirs, mapped, target_fd=-1, state_fd=-1, pieces=[Span(0, 4096)], watching="all")


def test_one_that_watches_still_when_the_program_ends_is_reaped(let_go) -> None:
    """The event loop of the program is gone by then."""
    copied = asyncio.run(copy_once())
    assert (copied.way, copied.pause_s, copied.pages) == ("watched", 0.0015, 7)
    (reaper,) = (thread for thread in threading.enumerate() if thread.name.startswith("vmfork-reap-"))
    let_go()
    reaper.join(LIMIT_S)
    assert not Path("/proc", reaper.name.rpartition("-")[2]).exists()
