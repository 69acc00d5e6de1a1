"""Child processes of a test: made by fork, awaited, their ends."""

from __future__ import annotations

import os
import select
import threading
import traceback
import warnings
from typing import TYPE_CHECKING

from vmfork.portal import portal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def fork_child(body: Callable[[], object]) -> int:
    """The pid of a child process that runs `body` and ends, with status 1 where it raised."""
    others = {*threading.enumerate()} - {threading.current_thread(), *_threads_of_the_blocking_api()}
    # gRPC's is there for good once a test has used it, and holds no lock of Python's.
    others = {thread for thread in others if "_poll_wrapper" not in thread.name}
    assert not others, f"a lock held by another thread would be held for ever in the child: {others}"
    with warnings.catch_warnings():
        # Python 3.12 and newer warn of any other thread; here there is one of C, which watches for tests that hang.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        body()
        code = 0
    except BaseException:  # noqa: BLE001 - pytest's own failures are none of Exception
        traceback.print_exc()
    finally:
        os._exit(code)


def _threads_of_the_blocking_api() -> set[threading.Thread | None]:
    """They are there for good once a test has used it: idle now, and a child begins anew."""
    executor = getattr(portal._loop, "_default_executor", None)
    return {portal._thread, *(executor._threads if executor is not None else ())}


def exit_code_of(pid: int) -> int:
    """The exit status of a child that has ended, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_gone(pidfd: int, *, limit_s: float = 10) -> bool:
    """Whether the process of `pidfd` has ended within the limit; it need not be a child."""
    return bool(select.select([pidfd], [], [], limit_s)[0])


def read_pipe(path: Path, *, limit_s: float = 10) -> str:
    """The first that a process says by that named pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([fd], [], [], limit_s)[0]
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)
