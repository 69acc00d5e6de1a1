"""What the host refused, and what nobody foresaw, as errors of vmfork's own."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmfork.errors import HostError, InternalError, VMForkError
from vmfork.hint import Hint

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOM = "make room where vmfork keeps its files (vmfork config), or where its output goes"
_RIGHTS = Hint(
    "look at its owner and mode; find_places() tells the folders, VMFORK_HOME and VMFORK_RUNTIME_DIR choose others",
    "look at its owner and mode; vmfork config shows the folders, VMFORK_HOME and VMFORK_RUNTIME_DIR choose others",
)
_OWN_FILES = "this process has as many files open as it may: raise the limit (ulimit -n), or close machines"
_DEVICE = "a disk or a file system of the host failed: its kernel log says more (dmesg)"
_PROCESSES = "no more processes or threads are allowed: raise the limit (ulimit -u), or close machines"

_HINTS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EMFILE: _OWN_FILES,
    errno.ENFILE: "the host has as many files open as it may: raise fs.file-max (sysctl), or close machines",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "the file system is read-only: choose other folders by VMFORK_HOME and VMFORK_RUNTIME_DIR",
    errno.ENOMEM: "the host is short of memory: close machines, or remove templates",
    errno.EAGAIN: _PROCESSES,
    errno.EIO: _DEVICE,
    errno.ENAMETOOLONG: "give shorter names, or shorter folders by VMFORK_HOME and VMFORK_RUNTIME_DIR",
}
_OTHER = "something changed under vmfork's hands, or the host cannot do it: try again; vmfork doctor looks at the host"


class CallbackError(Exception):
    """Carries `error`, which a callback of the caller's raised, out through vmfork: the caller gets `error` itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def translating() -> Iterator[None]:
    """What leaves the block is an error of vmfork's own, or what a callback of the caller's raised.

    `MemoryError` passes as it is, and so do cancellation and whatever else is no `Exception`.
    """
    try:
        yield
    except CallbackError as passing:
        raise passing.error from passing.error.__cause__
    except MemoryError:
        raise
    except Exception as error:
        if (own := translated(error)) is error:
            raise
        raise own from error


def translated(error: Exception) -> VMForkError:
    """What the system refused as a `HostError` with a hint; anything else is a bug, an `InternalError`.

    An error of ours is itself, and says what to do where the system's refusal is its cause, or it is the host's.
    """
    if isinstance(error, VMForkError):
        if not error.hint and isinstance(error.__cause__, OSError):
            error.hint = _hint_for(error.__cause__)
        elif not error.hint and isinstance(error, HostError):
            error.hint = _OTHER
        return error
    if isinstance(error, OSError):
        return _refused(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return HostError("no thread could be started", hint=_PROCESSES)
    return InternalError(f"{type(error).__name__}: {error}")


def find_hint(said: str) -> str:
    """What to do about the host's refusal that a program tells of; empty where it tells of none."""
    return next((hint for number, hint in _HINTS.items() if os.strerror(number) in said), "")


def _refused(error: OSError) -> HostError:
    told = error.strerror or str(error) or type(error).__name__
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return HostError(f"{where}{told}", hint=_hint_for(error))


def _hint_for(error: OSError) -> str:
    return _HINTS.get(error.errno or 0, _OTHER)
