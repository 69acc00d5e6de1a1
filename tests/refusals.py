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
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import vmfork

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a host that is full, short, broken or another's says.
NUMBERS = (errno.ENOSPC, errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM)

_PACKAGE = str(Path(vmfork.__file__).parent)
_TESTS = str(Path(__file__).parent)
_EVENTS = {
    "open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir",
    "os.scandir", "os.symlink", "os.truncate", "fcntl.flock", "fcntl.fcntl", "mmap.__new__",
    "socket.__new__", "socket.bind", "socket.connect", "subprocess.Popen",
}  # fmt: skip
_WRAPPED = (
    (os, "stat"), (os, "lstat"), (os, "fstat"), (os, "write"), (os, "pread"), (os, "pwrite"), (os, "fsync"),
    (os, "pipe"), (os, "memfd_create"), (os, "pidfd_open"), (os, "readlink"), (os, "statvfs"),
    (os, "sched_getaffinity"), (socket, "socketpair"),
)  # fmt: skip


@dataclass
class Refusal:
    """The touch `at` (0 is the first) fails with `number`. Without one they are counted."""

    at: int = -1
    number: int = 0
    seen: int = 0
    place: str = ""
    path: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def touch(self, what: str, _frame: FrameType, args: tuple[Any, ...]) -> None:
        with self._lock:
            place, self.seen = self.seen, self.seen + 1
        if place == self.at:
            self.place, self.path = what, str(args[0]) if args else ""
            raise OSError(self.number, os.strerror(self.number))


# Called with the touch's name, the frame of vmfork's that it comes from, and the call's arguments.
Act = Callable[[str, FrameType, tuple[Any, ...]], None]
_active: Act | None = None


def _touch(what: str, args: tuple[Any, ...]) -> None:
    if _active is not None and (frame := _find_our_frame()) is not None:
        _active(what, frame, args)


def _find_our_frame() -> FrameType | None:
    """The nearest frame of vmfork or of the tests, if it is vmfork's, and nothing is imported on the way."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        # Python's own, of which half is left when the other half fails (CPython 3.11 to 3.13).
        if name.startswith("<frozen importlib") or frame.f_code.co_name in ("new_event_loop", "socketpair"):
            return None
        if name.startswith(_PACKAGE):
            return frame
        if name.startswith(_TESTS) and name != __file__:
            return None
        frame = frame.f_back
    return None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    # A hook stays for as long as the process: it is added once, and looks first at whether it is wanted.
    if _active is not None and event in _EVENTS:
        _touch(event, args)


sys.addaudithook(_hook)


def _wrap(module: ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **given: Any) -> Any:
        _touch(f"{module.__name__}.{function.__name__}", args)
        return function(*args, **given)

    return wrapped


@contextmanager
def touching(act: Act) -> Iterator[None]:
    """In the block, `act` is called before each touch of the host."""
    global _active  # noqa: PLW0603 - a hook takes no argument
    with ExitStack() as patched:
        for module, name in _WRAPPED:
            patched.enter_context(mock.patch.object(module, name, _wrap(module, getattr(module, name))))
        _active = act
        try:
            yield
        finally:
            _active = None


@contextmanager
def refusing(at: int = -1, number: int = 0) -> Iterator[Refusal]:
    """In the block, touch `at` of the host fails; without one all are counted."""
    refusal = Refusal(at, number)
    with touching(refusal.touch):
        yield refusal
