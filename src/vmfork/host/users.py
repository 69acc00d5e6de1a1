"""User ids that nobody has, each lent to one machine of this host at a time."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import struct
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vmfork.errors import HostError
from vmfork.host.folders import open_file

if TYPE_CHECKING:
    from types import TracebackType

    from vmfork.config.isolation import UserRange

# One for the whole host, whatever runtime folders there are: ids are the host's. /run is root's alone.
LEASES = Path("/run/vmfork-users")
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))
# struct flock (fcntl(2)): kind, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi4x")


class UserLease:
    """Owner of the claim on one user id. It ends with the last copy of its descriptor, in whichever process.

    The byte of the file `LEASES` at the id's number is locked by an open file description lock: nothing has to be swept
    when a holder was killed.
    """

    def __init__(self, user: int, fd: int) -> None:
        self.user = user
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor that holds the claim."""
        return self._fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def lease_user(users: UserRange) -> UserLease:
    """The lowest id of `users` that no machine has, and no user of this host. Only root can.

    Raises `HostError` when all are taken, or the file of the claims cannot be had.
    """
    with ExitStack() as on_failure:
        try:
            fd = open_file(LEASES, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise HostError(f"cannot open {LEASES}: {error.strerror}", hint="see what put it there") from error
        on_failure.callback(os.close, fd)
        for user in range(users.first, users.last + 1):
            if not is_somebody(user) and _claim(fd, user):
                on_failure.pop_all()
                return UserLease(user, fd)
    raise HostError(
        f"all user ids from {users.first} to {users.last} are taken",
        hint="end some machines, or give a larger range (vm.user_ids)",
    )


def _claim(fd: int, user: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, user, 1, 0))
    except (BlockingIOError, PermissionError):  # EAGAIN, EACCES: another has it
        return False
    return True


@cache
def is_somebody(user: int) -> bool:
    """Whether a user or a group of this host has the id, or may give it to namespaces of his own (subuid(5))."""
    for find in (pwd.getpwuid, grp.getgrgid):
        try:
            find(user)
        except KeyError:
            continue
        return True
    return any(first <= user < first + count for first, count in read_subordinate())


@cache
def read_subordinate(files: tuple[Path, ...] = _SUBORDINATE) -> tuple[tuple[int, int], ...]:
    """First id and count of each range in such files; lines that are none are passed over."""
    lines = [line for path in files for line in _read_lines(path)]
    fields = [line.split(":")[1:] for line in lines]
    return tuple((int(pair[0]), int(pair[1])) for pair in fields if len(pair) == 2 and all(map(str.isdecimal, pair)))


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
