"""Docker's helpers, which know logins (github.com/docker/docker-credential-helpers), as they are run here."""

from __future__ import annotations

import os
import select
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vmfork.errors import Closed
from vmfork.host.process import ProcessIdentity, read_stat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import IO


class Helpers:
    """The helpers that are asked just now, by any thread. Once it is closed none is left, and none is begun."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._is_closed = False
        self._changing = threading.Lock()

    def close(self) -> None:
        """Whoever waits for one raises `Closed` at once."""
        with self._changing:
            self._is_closed = True
            for pid in self._running:
                _kill(pid)

    def run(self, argv: Sequence[str], question: bytes, *, limit_s: float) -> subprocess.CompletedProcess[bytes]:
        """It was asked, and has ended. Raises `TimeoutExpired`, `OSError` where it cannot run, and `Closed`.

        It stays in our session: a helper may ask its user at the terminal. What it says goes to memory, and what it
        started may outlive it, as an agent does that keeps keys unlocked.
        """
        with _memory() as out, _memory() as err:
            with self._started(argv, out, err) as process:
                assert process.stdin is not None
                with suppress(BrokenPipeError), process.stdin:  # one that reads nothing may answer all the same
                    process.stdin.write(question)
                is_late = not _wait_ended(process.pid, limit_s)
            self._check_open(argv)
            if is_late:
                raise subprocess.TimeoutExpired(argv, limit_s)
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(argv, process.returncode, out.read(), err.read())

    @contextmanager
    def _started(self, argv: Sequence[str], out: IO[bytes], err: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        """It runs, and is gone behind the block."""
        with self._changing:
            self._check_open(argv)
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=err, env=dict(os.environ))
            self._running.add(process.pid)
        try:
            yield process
        finally:
            _kill(process.pid)
            with self._changing:  # until then its pid is its own
                process.wait()
                self._running.remove(process.pid)

    def _check_open(self, argv: Sequence[str]) -> None:
        if self._is_closed:
            raise Closed(Path(argv[0]).name, how="was given up")


def _memory() -> IO[bytes]:
    return os.fdopen(os.memfd_create("vmfork-helper", os.MFD_CLOEXEC), "r+b")


def _wait_ended(pid: int, limit_s: float) -> bool:
    """Whether the child has ended within that time."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(limit_s * 1000))
    finally:
        os.close(fd)


def _kill(pid: int) -> None:
    """The child and all below it were killed; nothing, where it has ended."""
    parents = {int(entry.name): read_stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    family = [pid]
    for parent in family:  # which grows meanwhile
        family += [child for child, fields in parents.items() if fields and int(fields[1]) == parent]
    for member in [ProcessIdentity.of(each) for each in family]:
        if member is not None:
            member.kill()
