"""The host refuses: the n-th time that vmfork touches it, the system call fails with an error number.

Most places are Python's own audit events (PEP 578), raised by whatever opens, lists, makes, moves, connects or starts
something; an exception raised there is the call's. What has no event is wrapped. What Python touches to import a module
does not count, nor what other packages and the tests do.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import vmfork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What a host that is full, short, broken or another's says.
NUMBERS = (errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM)

_PACKAGE = str(Path(vmfork.__file__).parent)
_TESTS = str(Path(__file__).parent)
_EVENTS = {
    "open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir",
    "os.scandir", "os.symlink", "os.truncate", "fcntl.flock", "fcntl.fcntl", "mmap.__new__", "shutil.rmtree",
    "socket.__new__", "socket.bind", "socket.connect", "subprocess.Popen",
}  # fmt: skip
_WRAPPED = (
    (os, "stat"), (os, "fstat"), (os, "write"), (os, "pread"), (os, "pwrite"), (os, "fsync"), (os, "pipe"),
    (os, "memfd_create"), (os, "pidfd_open"), (os, "readlink"), (os, "statvfs"), (os, "sched_getaffinity"),
    (socket, "socketpair"),
)  # fmt: skip


@dataclass
class Refusal:
    """The touch `at` (0 is the first) fails with `number`. Without one they are counted."""

    at: int = -1
    number: int = 0
    seen: int = 0
    place: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def touch(self, what: str) -> None:
        if not _is_ours():
            return
        with self._lock:
            place, self.seen = self.seen, self.seen + 1
        if place == self.at:
            self.place = what
            raise OSError(self.number, os.strerror(self.number))


_active: Refusal | None = None


def _is_ours() -> bool:
    """Whether the nearest frame of vmfork or of the tests is vmfork's, and nothing is imported on the way."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        # Python's own, of which half is left when the other half fails (CPython 3.11 to 3.13).
        if name.startswith("<frozen importlib") or frame.f_code.co_name in ("new_event_loop", "socketpair"):
            return False
        if name.startswith(_PACKAGE):
            return True
        if name.startswith(_TESTS) and name != __file__:
            return False
        frame = frame.f_back
    return False


def _hook(event: str, _args: tuple[Any, ...]) -> None:
    # A hook stays for as long as the process: it is added once, and looks first at whether it is wanted.
    if _active is not None and event in _EVENTS:
        _active.touch(event)


sys.addaudithook(_hook)


def _wrap(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **given: Any) -> Any:
        if _active is not None:
            _active.touch(function.__name__)
        return function(*args, **given)

    return wrapped


@contextmanager
def refusing(at: int = -1, number: int = 0) -> Iterator[Refusal]:
    """In the block, touch `at` of the host fails; without one all are counted."""
    global _active  # noqa: PLW0603 - a hook takes no argument
    refusal = Refusal(at, number)
    with ExitStack() as patched:
        for module, name in _WRAPPED:
            patched.enter_context(mock.patch.object(module, name, _wrap(getattr(module, name))))
        _active = refusal
        try:
            yield refusal
        finally:
            _active = None
